"""Train on batches from a torch DataLoader whose processes fork after create(): they never touch the store.

python -m launcher -n 2 -s 1 python examples/dataloader.py dist_sync
"""

import sys

import kvstore

kvstore.serve()  # a server or the scheduler serves here and exits; only workers go on

import torch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

x = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
y = x @ torch.arange(8.0)
data = TensorDataset(x, y)

with kvstore.create(sys.argv[1] if len(sys.argv) > 1 else "local") as kv:
    weight = torch.zeros(8, requires_grad=True)
    kv.set_optimizer(kvstore.optimizer.create("sgd", learning_rate=0.1, rescale_grad=1 / kv.num_workers))
    kv.init("weight", weight)
    mine = DistributedSampler(data, kv.num_workers, kv.rank)  # each worker's own share of the samples
    for epoch in range(3):
        mine.set_epoch(epoch)
        for inputs, target in DataLoader(data, 50, sampler=mine, num_workers=2, multiprocessing_context="fork"):
            loss = (inputs @ weight - target).square().mean()
            (gradient,) = torch.autograd.grad(loss, weight)
            kv.pushpull("weight", gradient, out=weight.detach())  # detach() shares the memory: weight is updated
        if kv.rank == 0:
            print(f"epoch {epoch} loss {loss:.6f}")
