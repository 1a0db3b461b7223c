# ruff: noqa
# mypy: ignore-errors
# fmt: off
"""One run on the device: tests of the products, their times, the decode step with one launch and with two."""
import json, os, statistics, subprocess, sys, time, traceback
T0 = time.time()
OUT = os.environ.get("OUT", "/tmp")
def say(*a):
    print(f"[{time.time()-T0:6.1f}]", *a, flush=True)
def child(name, seconds, *command):
    say("==", name)
    try:
        done = subprocess.run([sys.executable, *command], timeout=seconds, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        print(done.stdout[-9000:], flush=True)
    except subprocess.TimeoutExpired as error:
        print((error.stdout or b"")[-6000:].decode(), "\n", name, "ended after", seconds, "s", flush=True)
def steps():
    import torch
    from bench.layers import random_inputs, random_slice, true_width
    from kernels import expert_mlp
    from model.cache import PAGE_TOKENS
    from model.fp8_step import DecodeStep
    there = expert_mlp.has_gluon
    config = true_width(moe_layers=4)
    model = random_slice(config, 128 * 4096 // PAGE_TOKENS, torch.device("cuda"))
    with torch.inference_mode():
        for rows in (1, 16, 64, 128):
            torch.manual_seed(rows)
            inputs = random_inputs(model.config, rows, 4096, model.cache.num_pages)
            embedded = inputs.hidden_RD.clone()
            graphs, outs = {}, {}
            for name in ("one launch", "two"):
                expert_mlp.has_gluon = there if name == "one launch" else (lambda device: False)
                step = DecodeStep(model.config, inputs, 4096, exact=True)
                def run():
                    inputs.hidden_RD.copy_(embedded)
                    return step.run(model.layers, model.cache, model.last_norm_D)
                stream = torch.cuda.Stream()
                with torch.cuda.stream(stream):
                    run(); run()
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    out = run()
                graph.replay(); torch.cuda.synchronize()
                outs[name] = out.clone()
                graphs[name] = (graph, step)
            times = {name: [] for name in graphs}
            for _ in range(25):
                for name, (graph, _) in graphs.items():
                    a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                    a.record(); graph.replay(); b.record(); b.synchronize()
                    times[name].append(a.elapsed_time(b))
            say(rows, "rows", {n: round(statistics.median(t), 4) for n, t in times.items()}, "same bits", torch.equal(*outs.values()), "finite", bool(outs["two"].isfinite().all()))
if sys.argv[1:] == ["steps"]:
    steps()
else:
    print(subprocess.run(["nvidia-smi", "--query-gpu=name,power.limit", "--format=csv"], capture_output=True, text=True).stdout)
    say("== tests, side by side")
    names = ["fp8_product_at_true_widths", "many_rows_at_true_widths and 384", "many_rows_at_true_widths and 2304",
             "many_rows_at_true_widths and 32768", "many_rows_at_true_widths and 16384", "bits_of_a_pair", "one_launch",
             "give_every_pair or what_few_give", "step"]
    rest = "not (" + " or ".join(n.split(" and ")[0] for n in names[:-1]) + ")"
    def test(files, k):
        return subprocess.Popen([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=short", *files, *(["-k", k] if k else [])],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    running = {k: test(["tests/gpu/test_products.py"], k) for k in [*names[:-1], rest]}
    running["step"] = test(["tests/gpu/test_fp8_step.py"], None)
    for k, process in running.items():
        try:
            out = process.communicate(timeout=max(1, 110 - (time.time() - T0)))[0]
            say(k, "->", process.returncode, out.strip().splitlines()[-1:] if process.returncode == 0 else out[-2500:])
        except subprocess.TimeoutExpired:
            process.kill()
            say(k, "not ended")
    child("bench", 75, "-m", "bench.kernels", "--ops", "experts", "dense", "--out", f"{OUT}/kernels.json")
    child("steps", 60, "device_products.py", "steps")
    say("end")
