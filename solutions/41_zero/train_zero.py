"""The lab's result as one script: a small transformer on Python source, trained by as many ranks as torchrun starts.

    torchrun --nproc_per_node=2 train_zero.py --stage 2
    torchrun --nnodes=2 --node_rank=0 --master_addr=HOST --master_port=29500 --nproc_per_node=1 train_zero.py --stage 3
                                        # the same on the other host, with --node_rank=1

Stage 0 is plain data parallelism, 1 to 3 are ZeRO's. The functions are those of the notebook zero.ipynb beside this
file: yours. On machines with a GPU for each rank the messages go through NCCL, else through gloo.
"""
import argparse
import time

import torch
import torch.distributed as dist

from course import data, full_run, layers, ranks
from course.cluster import nbytes

LR = 1e-3
WANTED = (r"FLOPS = |class Alone|def (shard_bounds|ring_\w+|eight_a_bucket|ddp_step|reduce_at_the_end|update|zero1_step|zero2_step|serial"
          r"|prefetch|zero3_forward_backward|measure_step)\(")


def lab_functions() -> dict:
    """The names that the lab's setup and exercise cells define."""
    return full_run.lab_functions(__file__, WANTED)


def train(comm, stage: int, steps: int = 100, batch: int = 32, rule: str = "adamw", seed: int = 0, d: int = 64, depth: int = 4,
          length: int = 64, device: str = "cpu") -> dict:
    """Train on this rank's part of each batch. Loss of each step (mean over ranks), parameters, and bytes held for the model."""
    lab, text = lab_functions(), data.pycode(2_000_000)
    net = layers.transformer(256, d, depth, length=length, seed=seed)
    for module in net.modules:
        module.to(device)
    if stage == 0:
        net = net.single()
    params, state, losses = net.vectors(), {}, []
    buckets = lab["eight_a_bucket"](len(net.sizes))
    if stage == 3:
        params = [lab["padded"](p, comm.world).chunk(comm.world)[comm.rank].clone() for p in params]
    begin = time.perf_counter()
    for step in range(steps):
        generator = torch.Generator().manual_seed(1000 * seed + step)
        x, y = (t.long().to(device).chunk(comm.world)[comm.rank] for t in text.batch(batch, length, generator))
        backward = net.backward(x, y)
        if stage == 0:
            # ddp_step makes steps of SGD; with lr 1 the change is the mean gradient, and any rule can follow.
            after, _ = lab["ddp_step"](comm, params, backward, buckets, {"step": step}, lr=1.0)
            pairs = [lab["update"](rule, p, p - q, state.get(i, {}), LR) for i, (p, q) in enumerate(zip(params, after))]
            params, state = [p for p, _ in pairs], {i: s for i, (_, s) in enumerate(pairs)}
        elif stage == 1:
            grads = [torch.zeros_like(p) for p in params]
            backward(params, lambda i, grad: grads[i].copy_(grad))
            flat, state = lab["zero1_step"](comm, torch.cat(params), torch.cat(grads), state, rule=rule, lr=LR)
            params = list(flat.split(net.sizes))
        elif stage == 2:
            params, state = lab["zero2_step"](comm, params, backward, state, rule=rule, lr=LR)
        else:
            loss, grads = lab["zero3_forward_backward"](comm, params, net.sizes, x, *net.pieces(x, y))
            pairs = [lab["update"](rule, p, g, state.get(i, {}), LR) for i, (p, g) in enumerate(zip(params, grads))]
            params, state = [p for p, _ in pairs], {i: s for i, (_, s) in enumerate(pairs)}
        losses.append(loss if stage == 3 else backward.loss)
        ranks.progress(step + 1, steps, float(losses[-1]))
    seconds = time.perf_counter() - begin
    losses = comm.all_reduce(torch.stack(losses)).wait() / comm.world
    held = {"parameters": nbytes(params), "optimizer": nbytes(state)}
    if stage == 3:
        params = [comm.all_gather(p).wait()[:size] for p, size in zip(params, net.sizes)]
    return {"losses": losses.cpu(), "params": torch.cat(params).cpu(), "held": held, "seconds": seconds}


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--stage", type=int, choices=range(4), default=2)
    options.add_argument("--steps", type=int, default=100)
    options.add_argument("--out", help="rank 0 writes losses and parameters there (torch.save)")
    chosen = options.parse_args()
    comm = ranks.join()
    where = "cuda" if dist.get_backend() == "nccl" else "cpu"
    if where == "cpu":
        torch.set_num_threads(1)
    result = train(comm, chosen.stage, chosen.steps, device=where)
    if comm.rank == 0:
        print(f"stage {chosen.stage}, {comm.world} ranks, {dist.get_backend()}: loss {result['losses'][0]:.3f} -> "
              f"{result['losses'][-1]:.3f} nats in {result['seconds']:.1f} s; rank 0 holds {result['held']}")
        if chosen.out:
            torch.save(result, chosen.out)
    dist.destroy_process_group()
