"""Which part of the state a worker writes."""

import torch
from torch import nn

from orchestrator.distributed.layout import Holders
from orchestrator.distributed.training_state import MASTER, MOMENTS, _WholeState

NUM_WORKERS = 8


def test_each_worker_writes_a_stretch_of_the_whole_state_and_all_of_them_each_element_once() -> None:
    model = nn.ModuleList([nn.Linear(5, 3), nn.Linear(3, 7)])
    optimizer = torch.optim.AdamW(model.parameters())
    model[1](model[0](torch.ones(5))).sum().backward()
    optimizer.step()
    states = [_WholeState(model, optimizer, rank, NUM_WORKERS) for rank in range(NUM_WORKERS)]
    owned, holders = [[*state.owned()] for state in states], Holders(states[0].layout(), NUM_WORKERS)

    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        whole = {MASTER: parameter.detach(), **{kind: optimizer.state[parameter][kind] for kind in MOMENTS}}
        for kind, values in whole.items():
            mine = [part for parts in owned for part in parts if (part.parameter, part.kind) == (name, kind)]
            assert torch.equal(torch.cat([part.view for part in mine]), values.flatten())
            assert [part.start for part in mine] == [0, *(part.stop for part in mine[:-1])]
    sizes = [sum(part.stop - part.start for part in parts) for parts in owned]
    assert max(sizes) - min(sizes) <= 3 * (NUM_WORKERS - 1)  # the last one has what is left
    for rank, parts in enumerate(owned):
        assert {holder for part in parts for holder in holders.of(part.parameter, part.start, part.stop)} == {rank}
    # a share of each parameter would be as many ranges as parameters times workers
    assert sum(map(len, owned)) <= 3 * (len(parameters) + NUM_WORKERS - 1)
