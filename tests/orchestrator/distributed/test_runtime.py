"""Requests to stop, as workers agree on the strongest."""

from orchestrator.distributed.runtime import MOVE, STOP_SIGNALS, request_of_strength, strength


def test_strongest_request_is_found_by_its_strength() -> None:
    requests = [0, MOVE, *sorted(STOP_SIGNALS)]
    assert sorted(requests, key=strength) == requests
    assert len({strength(request) for request in requests}) == len(requests)
    assert [request_of_strength(strength(request)) for request in requests] == requests
