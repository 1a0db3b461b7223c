# ruff: noqa
# mypy: ignore-errors
# fmt: off
"""One run on the device: prefill's bits, its time, variants of its attention."""
import json, os, statistics, subprocess, sys, time, traceback
from dataclasses import replace
import torch
T0 = time.time()
OUT = os.environ.get("OUT", "/tmp")
def say(*a):
    print(f"[{time.time()-T0:6.1f}]", *a, flush=True)
def attempt(name, f, *a):
    try:
        say("==", name); return f(*a)
    except Exception:
        traceback.print_exc(file=sys.stdout); sys.stdout.flush()
def ms(f, n=5):
    f(); torch.cuda.synchronize(); ts=[]
    for _ in range(n):
        s,e=(torch.cuda.Event(enable_timing=True) for _ in range(2))
        s.record(); f(); e.record(); e.synchronize(); ts.append(s.elapsed_time(e))
    return statistics.median(ts)
from tests.gpu import test_fp8_prefill as tp
from tests.gpu.attention_inputs import chosen_slots, latent_cache, queries, index_cache, index_queries
from kernels import sparse_mla as dec, sparse_mla_prefill as pre
from kernels.unpage_latents import unpage_latents, unpage_latents_reference
from bench.true_width import random_slice
from model.true_width import true_width
SC = 192**-0.5
VARIANTS = [(192,56),(168,120),(184,40),(200,40),(208,32),(176,56)]
def setup(experts=64):
    c = true_width(moe_layers=1, num_experts=experts)
    mk = tp.RandomLayers(c, torch.device("cuda"))
    return c, [mk.layer(i) for i in range(2)]
def warm(what):
    with torch.inference_mode():
        if what == "attention":
            for v in VARIANTS:
                for sp in (1,4):
                    try: attention(8, 8192, sp, *v)
                    except Exception as e: print("variant", v, sp, repr(e)[:200])
        elif what == "topk":
            from kernels.select_topk import select_topk
            from kernels.sparse_mla import config_for
            for columns in (4096, 8192, 16384, 32768):
                select_topk(torch.randn(8, columns, device="cuda"), torch.full((8,), columns, dtype=torch.int32, device="cuda"), torch.arange(columns//64, dtype=torch.int32, device="cuda").expand(8,-1))
            cache, q = latent_cache(8192,"cuda"), queries(8,128,"cuda"); s=chosen_slots([2048]*8,2048,8192,"cuda")
            for sp in (1,4): dec.sparse_mla(q,s,cache,scale=SC,config=replace(dec.EXACT,splits=sp))
            k=unpage_latents(cache, torch.arange(128,dtype=torch.int32,device="cuda"))
            for sp in (1,4): pre.sparse_mla_prefill(q,s,k,scale=SC,splits=sp,config=replace(pre.CONFIG,gluon=False))
        else:
            c, layers = setup(256 if what.endswith("256") else 64)
            prompts = [torch.randn(n, 7168, device="cuda").bfloat16() for n in (2110,)]
            if what.startswith("decode"): tp.decoded(c, layers, [p[:3] for p in prompts]*3)
            else: tp.prefilled(c, layers, prompts, 4096, exact=what.startswith("exact"))
    torch.cuda.synchronize()
def attention(n, keys, splits, w, p, gluon=True):
    q, k = queries(n,128,"cuda"), torch.randn(keys,576,device="cuda").half()
    s = torch.stack([torch.randperm(keys,device="cuda")[:2048].int() for _ in range(min(n,64))]).repeat(-(-n//64),1)[:n].contiguous()
    cfg = replace(pre.CONFIG, weigher_registers=w, producer_registers=p, gluon=gluon)
    return lambda: pre.sparse_mla_prefill(q,s,k,scale=SC,splits=splits,config=cfg)
def pieces():
    cache, q = latent_cache(8192,"cuda"), queries(67,128,"cuda")
    counts=[*torch.randint(1,2049,(60,)).tolist(),0,1,2047,2048,64,65,512]
    s = chosen_slots(counts,2048,8192,"cuda")
    k = unpage_latents(cache, torch.arange(128,dtype=torch.int32,device="cuda"))
    say("unpage right", torch.equal(k, unpage_latents_reference(cache, torch.arange(128,dtype=torch.int32,device="cuda"))))
    ref = dec.sparse_mla_reference(q,s,cache,scale=SC)
    d1 = dec.sparse_mla(q,s,cache,scale=SC,config=replace(dec.EXACT,splits=1)); d4 = dec.sparse_mla(q,s,cache,scale=SC,config=dec.EXACT)
    for name,o in (("decode 1",d1),("decode 4",d4)): say(name, "error", float((o.double()-ref).abs().max()))
    for gl in (True, False):
        for sp,d in ((1,d1),(4,d4)):
            o = pre.sparse_mla_prefill(q,s,k,scale=SC,splits=sp,config=replace(pre.CONFIG,gluon=gl))
            say("prefill gluon" if gl else "prefill triton", sp, "error", float((o.double()-ref).abs().max()), "bits of decode", torch.equal(o,d), "rows unequal", int((o!=d).flatten(1).any(1).sum()))
    from kernels import index_logits as il
    ic = index_cache(8192,"cuda"); iq,iw = index_queries(300,"cuda"); pg=torch.randperm(128,device="cuda").int()
    L=torch.arange(3001,3301,dtype=torch.int32,device="cuda")
    a=il.index_logits_prefill(iq,iw,ic,pg,first_length=3001)
    for cfg in {c for *_,c in il.DECODE}:
        b=il.index_logits_decode(iq,iw,ic,pg[None].repeat(300,1),L,config=cfg)
        m=torch.arange(8192,device="cuda")[None]<L[:,None]
        say("logits bits of decode", cfg.block_keys, cfg.tiles, torch.equal(a[m],b[m]))
    from kernels.bf16_gemm import bf16_matmul, bf16_matmul_many
    x=torch.randn(300,7168,device="cuda").bfloat16()
    for n in (64,256):
        w=torch.randn(n,7168,device="cuda").bfloat16(); parts=torch.empty(14,300,n,device="cuda"); bf16_matmul(x,w,parts)
        o=torch.empty(300,n,device="cuda"); bf16_matmul_many(x,w,o,splits=14); t=torch.zeros_like(o)
        for p in parts: t+=p
        say("bf16 many bits", n, torch.equal(o,t))
def bits():
    c, layers = setup()
    torch.manual_seed(3)
    prompts=[torch.randn(n,c.hidden_size,device="cuda").bfloat16() for n in tp.LENGTHS]
    few=tp.decoded(c,layers,prompts); torch.cuda.synchronize(); say("decoded", [bool(torch.isfinite(r).all()) for r in few[:3]])
    names=["residual0","residual1","residual2"]+[f"{n}.{l}" for l in range(2) for n in ("latent","scale","rotary","ikey","iscale")]
    for chunk,exact in ((4096,True),(1000,True),(4096,False)):
        many=tp.prefilled(c,layers,prompts,chunk,exact=exact)
        for name,a,b in zip(names,few,many):
            ne=(a!=b)
            if ne.any():
                rows=ne.flatten(1).any(1).nonzero()[:,0] if ne.dim()>1 else ne.nonzero()[:,0]
                d=float((a.float()-b.float()).norm()/a.float().norm())
                say("chunk",chunk,"exact",exact,name,"UNEQUAL",int(ne.sum()),"of",ne.numel(),"first rows",rows[:6].tolist(),"relative",f"{d:.2e}")
        say("chunk",chunk,"exact",exact,"all equal",all(torch.equal(a,b) for a,b in zip(few,many)))
def variants():
    fl=lambda n: 2*n*128*2048*1088
    rows=[]
    for keys in (4096,32768):
        for sp in (1,4):
            for v in VARIANTS if keys==32768 else VARIANTS[:1]:
                if time.time()-T0>235: return
                try: t=ms(attention(4096,keys,sp,*v)); say("attention 4096 queries,",keys,"keys, splits",sp,"registers",v,f"{t*1e3:.0f} us {fl(4096)/t/1e9:.0f} TF")
                except Exception as e: say("variant",v,sp,repr(e)[:300])
    t=ms(attention(4096,32768,1,192,56,False)); say(f"triton {t*1e3:.0f} us {fl(4096)/t/1e9:.0f} TF")
    cache,q=latent_cache(32768,"cuda"),queries(4096,128,"cuda"); s=torch.stack([torch.randperm(32768,device="cuda")[:2048].int() for _ in range(64)]).repeat(64,1)
    for sp in (1,4):
        t=ms(lambda: dec.sparse_mla(q,s,cache,scale=SC,config=replace(dec.EXACT,splits=sp))); say(f"decode kernel on FP8 cache, splits {sp}: {t*1e3:.0f} us {fl(4096)/t/1e9:.0f} TF")
def slice_():
    from bench.layers import kernel_times
    from bench.layers_prefill import line_of_prefill, measure_prefill
    model=random_slice(true_width(moe_layers=4),1024,torch.device("cuda")); torch.cuda.synchronize(); say("slice made",torch.cuda.memory_allocated()/1e9)
    results=[]
    for n,length,chunk,mode in ((16,4096,16384,"throughput"),(16,4096,8192,"throughput"),(2,32768,8192,"throughput"),(16,4096,16384,"exact"),(2,32768,16384,"throughput"),(2,32768,8192,"exact"),(16,4096,8192,"exact")):
        if time.time()-T0>200: break
        prof=(length,chunk) in ((4096,16384),(32768,8192))
        try:
            torch.cuda.reset_peak_memory_stats(); before=torch.cuda.memory_allocated()
            r=measure_prefill(model,n,length,chunk,exact=mode=="exact",kernel_times=kernel_times if prof else None)
            say(line_of_prefill(r),"finite",r["finite"],"peak over the model GB",(torch.cuda.max_memory_allocated()-before)/1e9); results.append(r)
            if prof:
                tokens=n*length
                for k,us in list(r["kernels_us"].items())[:26]: print(f"      {us/1e3:9.2f} ms {us/sum(r['kernels_us'].values()):6.1%} {us*1e3/tokens/5:7.2f} ns/token/layer {k[:70]}",flush=True)
            torch.cuda.empty_cache()
        except Exception:
            traceback.print_exc(file=sys.stdout)
        json.dump(results,open(f"{OUT}/layers-prefill.json","w"),indent=1)
if __name__=="__main__":
    if len(sys.argv)>1: warm(sys.argv[1])
    else:
        ps=[(w,subprocess.Popen([sys.executable,__file__,w],stdout=subprocess.PIPE,stderr=subprocess.STDOUT,text=True)) for w in ("decode","exact","throughput","attention","topk","exact256","throughput256")]
        for w,p in ps:
            o,_=p.communicate(timeout=200); say("warm",w,p.returncode); 
            if p.returncode or w=="attention": print(o[-3000:])
        torch.set_grad_enabled(False)
        attempt("pieces",pieces); attempt("bits",bits); torch.cuda.empty_cache(); attempt("slice",slice_); torch.cuda.empty_cache(); attempt("variants",variants)
        say("end")
