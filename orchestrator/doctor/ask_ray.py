"""Query the Ray cluster at the address in the first argument, and print its facts as one line of JSON.

The second argument is a local storage root, of which it says who does not see it; empty for another one.
"""

import json
import sys


def main() -> None:
    """Print the cluster's facts, or the error instead."""
    from orchestrator.cluster.ray_cluster import cluster_facts

    try:
        facts = cluster_facts(sys.argv[1], sys.argv[2])
    except Exception as error:
        facts = {"error": " ".join(str(error).split())}
    sys.stdout.write("\n" + json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
