"""What more ranks cost."""

import json

import runs
from runs import launcher, run


def scaling():
    """Medians of steps of the demo's model on 1, 2 and 4 ranks of one thread: the same step, and four times its rank's."""
    start = launcher("openmpi")
    quiet = "train.steps=16 train.validate_every=0 train.evaluate_before=false train.evaluate_after=false train.export=false"
    fixed = f"{quiet} train.shards=4 train.micro_batch_tokens=4096 null_space.tokens=600 gems.refresh_every=8 device=cpu"
    print("ranks | step | ms | tokens/s | exchange ms | wait ms | MB sent")
    for kind, of in [("strong", lambda n: 64), ("weak", lambda n: 16 * n)]:
        for n in [1, 2, 4]:
            out, sets = f"scaling-{kind}-{n}", f"{fixed} train.batch_per_task={{rec={of(n) // 2},search={of(n) // 2}}}".split()
            call = [runs.BINARY, "train", "--json", "--threads", "1", "--out", out]
            run([*call, *(w for s in sets for w in ("--set", s))], start(n) if n > 1 else ())
            lines = [json.loads(l) for l in (runs.HOME / out / "metrics.jsonl").read_text().splitlines()][4:]
            median = lambda key: sorted(l.get(key, 0) for l in lines)[len(lines) // 2]
            print(f"{n} | {kind}, {of(n)} examples | {median('step_ms'):.0f} | {median('tokens_per_second'):.0f} | "
                  f"{median('exchange_ms'):.1f} | {median('wait_ms'):.1f} | {median('exchange_bytes') / 1e6:.1f}", flush=True)
