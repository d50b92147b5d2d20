"""This compares the formula on both devices, and times the pass over memory that writes weights, and the memory."""

import time

from gpu_findings import CUDA, finding, tell
from switch import copy_bandwidth

from serve.settings import installed_device


def bits() -> None:
    import torch

    from merge.digest import WeightDigest, parameter_key, takes_words
    from merge.interpolate import theta
    from serve.switch import fused

    device = torch.device(installed_device())
    if CUDA:
        tell("gpu", name=torch.cuda.get_device_name(), torch=torch.__version__, cuda=torch.version.cuda)
    lams = ("0", "1", "0.05", "0.35", "0.4999", "0.5", "0.65", "0.9", "1.3", "-0.3", "-0.7")
    with finding("lerp: elements that differ between CPU and device") as found:
        generator = torch.Generator().manual_seed(0)
        differ: dict[str, int] = {}
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            base = torch.randn((1 << 20) + 1, generator=generator).to(dtype)
            aligned = (base.float() + 0.1 * torch.randn(base.shape, generator=generator)).to(dtype)
            for lam in lams:
                here = theta([base, aligned], lam)
                there = theta([base.to(device), aligned.to(device)], lam).cpu()
                count = int((here.view(torch.uint8) != there.view(torch.uint8)).sum())
                differ |= {f"{dtype} {lam}": count} if count else {}
        found |= {"cases": 3 * len(lams), "differ": differ, "verdict": "differs" if differ else "equal"}
    if not CUDA:
        return
    with finding("fused pass: cases unlike lerp and digest one after the other") as found:
        on_device = torch.Generator(device).manual_seed(0)
        wrong, cases = [], 0
        shapes = ((1024, 4096), (129, 14336), (4, 5000), (4096,), (3, 7, 8), (5, 12), (1, 16), (33, 4), (2000, 1))
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            for shape in shapes:
                base, aligned = (
                    torch.randn(shape, generator=on_device, device=device).to(dtype) for _ in ("base", "aligned")
                )
                base.view(-1)[0] = -0.0
                for lam in lams:
                    cases += 1
                    exact, out = theta([base, aligned], lam), torch.full_like(base, 7.0)
                    mine, wanted = WeightDigest(device), WeightDigest(device)
                    words = takes_words(dtype.itemsize, shape[-1], ())
                    fused.write(base, aligned, lam, out, mine, parameter_key("x"), 11, words)
                    steps = [step // shape[-1] for step in exact.stride()[:-1]]
                    wanted.add(exact, parameter_key("x"), 11, steps, words)
                    same = torch.equal(out.view(torch.uint8), exact.view(torch.uint8))
                    if not same or mine.hex() != wanted.hex():
                        wrong.append(f"{dtype} {shape} {lam}")
        found |= {"cases": cases, "wrong": wrong[:9], "verdict": "failed" if wrong else "equal"}
    with finding("speed of memory and of products") as found:
        one, two = (torch.randn(8192, 8192, device=device).to(torch.bfloat16) for _ in range(2))
        found |= {tier: f"{copy_bandwidth('cuda', tier) / 1e9:.0f} GB/s" for tier in ("device", "pinned")}
        for _ in range(3):
            one @ two
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(10):
            one @ two
        torch.cuda.synchronize()
        found["bf16 product"] = f"{20 * 8192**3 / (time.perf_counter() - began) / 1e12:.0f} TFLOP/s"
