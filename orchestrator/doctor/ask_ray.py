"""Query the Ray cluster at the address in the first argument, and print its facts as one line of JSON."""

import json
import sys


def main() -> None:
    """Print the cluster's facts, or the error instead."""
    from orchestrator.cluster.ray_cluster import cluster_facts

    try:
        facts = cluster_facts(sys.argv[1])
    except Exception as error:
        facts = {"error": " ".join(str(error).split())}
    sys.stdout.write("\n" + json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
