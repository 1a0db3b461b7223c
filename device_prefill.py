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
VARIANTS = [(200,40)]
def setup(experts=64):
    c = true_width(moe_layers=1, num_experts=experts)
    mk = tp.RandomLayers(c, torch.device("cuda"))
    return c, [mk.layer(i) for i in range(2)]
def warm(what):
    with torch.inference_mode():
        if what == "attention":
            f=logits_inputs(2,4096)
            for v in LOGITS:
                try: f(v)()
                except Exception as e: print(v, repr(e)[:200])
            for v in VARIANTS:
                for sp in (1,4):
                    try: attention(8, 8192, sp, *v)()
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
            if what=="decode256":
                from bench.layers import measure
                from bench.true_width import Slice
                m=random_slice(c,1024,torch.device("cuda"))
                for r in (1,16,128): [measure(m,r,4096 if r<128 else 512,exact=ex,profile=False) for ex in (True,False)]
            elif what.startswith("decode"): tp.decoded(c, layers, [p[:3] for p in prompts]*3)
            else: tp.prefilled(c, layers, prompts, 4096, exact=what.startswith("exact"))
    torch.cuda.synchronize()
def attention(n, keys, splits, w, p, gluon=True):
    q, k = queries(n,128,"cuda"), torch.randn(keys,576,device="cuda").half()
    s = torch.stack([torch.randperm(keys,device="cuda")[:2048].int() for _ in range(min(n,64))]).repeat(-(-n//64),1)[:n].contiguous()
    cfg = replace(pre.CONFIG, weigher_registers=w, producer_registers=p, gluon=gluon)
    return lambda: pre.sparse_mla_prefill(q,s,k,scale=SC,splits=splits,config=cfg)
def pieces():
    import pytest
    from tests.gpu import test_between_products as t1, test_products as t2, test_sparse_mla as t3
    cuda=torch.device("cuda")
    def go(name,f,*a,**k):
        torch.manual_seed(0)
        try: f(*a,**k); say("ok  ",name)
        except pytest.skip.Exception as e: say("skip",name,e)
        except Exception as e: say("BAD ",name,type(e).__name__,str(e)[:300])
    go("absorb many bits",t1.test_absorbing_many_rows_gives_the_bits_of_few,cuda)
    for sh in (True,False):
        for many in (True,False): go(f"gate, sorted tiles, many {many}",t1.test_gate_chooses_as_the_model_does,cuda,sh,many,pytest.MonkeyPatch())
    from kernels import gate_topk as gk
    from kernels.routes import empty_routes
    gk.MANY_ROWS=1024; R=5000; sc=torch.randn(1,R,256,device="cuda"); sc[0,:50]=sc[0,:50].round(); bi=torch.randn(256,device="cuda")*.1; shp=gk.GateShape(num_experts=256,per_row=8,num_groups=8,kept_groups=4,scaling=2.5,shared=True); res=[]
    for m in (1024,1<<30):
        gk.MANY_ROWS=m; ro=empty_routes(257,R,9,128,cuda,shared=True); w=torch.empty(R,8,device="cuda"); ex=torch.empty(R,8,dtype=torch.int32,device="cuda"); gk.gate_topk(sc,bi,shp,w,ex,ro); res.append((w,ex))
    gk.MANY_ROWS=1024
    say("gate of 5000 rows, both forms: weights and experts equal",torch.equal(res[0][0],res[1][0]),torch.equal(res[0][1],res[1][1]))
    from kernels import index_logits as il
    ic=index_cache(1<<16,"cuda"); iq,iw=index_queries(64,"cuda"); pg=torch.stack([torch.randperm(1024,device="cuda")[:128].int() for _ in range(64)]); L=torch.randint(0,8193,(64,),dtype=torch.int32,device="cuda")
    ref=il.index_logits_reference(iq,iw,ic,pg,L); m=torch.arange(8192,device="cuda")[None]<L[:,None]; base=None
    for cfg in {c for *_,c in il.DECODE}:
        o=il.index_logits_decode(iq,iw,ic,pg,L,config=cfg); base=o if base is None else base
        say("logits",cfg.block_keys,cfg.tiles,"error",float((o.double()-ref)[m].abs().max()),"same bits",torch.equal(o[m],base[m]))
    a=il.index_logits_prefill(iq,iw,ic,pg[0],first_length=8000); b=il.index_logits_decode(iq,iw,ic,pg[:1].repeat(64,1),torch.arange(8000,8064,dtype=torch.int32,device="cuda"),config=il.DECODE[-1][-1]); m=torch.arange(8192,device="cuda")[None]<torch.arange(8000,8064,device="cuda")[:,None]
    say("logits prefill has decode's bits",torch.equal(a[m],b[m]))
    go("pair bits, 16 to 128 a tile",t2.test_bits_of_a_pair_do_not_depend_on_the_tile,cuda)
    for tr in (16,32,64,128): go(f"experts {tr}",t2.test_experts_give_every_pair_its_row,cuda,tr)
    for sp in (1,2): go("many few",t2.test_many_rows_give_what_few_give,cuda,sp)
    go("bf16",t2.test_bf16_parts_add_up,cuda,70)
    for n in (1,17,300):
        for sp in (1,4):
            for gl in (False,True): go(f"prefill {n} queries, {sp} splits, gluon {gl}",t3.test_prefill_on_the_device_is_the_reference,n,sp,gl)
    for n in (1,16,64):
        for ex in (False,True): go(f"decode {n} exact {ex}",t3.test_decode_on_the_device_is_the_reference,n,ex,True)
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
def per(f,n=20):
    f(); f(); torch.cuda.synchronize(); ts=[]
    for _ in range(5):
        x,y=(torch.cuda.Event(enable_timing=True) for _ in range(2))
        x.record()
        for _ in range(n): f()
        y.record(); y.synchronize(); ts.append(x.elapsed_time(y)/n*1e3)
    return statistics.median(ts)
LOGITS=[(64,16,5),(64,16,4),(64,16,3),(64,8,5),(64,32,5),(64,12,5),(64,8,4),(64,32,4),(64,64,5),(128,8,4)]
def logits_inputs(T,L):
    from kernels import index_logits as il
    ic=index_cache(T*L,"cuda"); iq,iw=index_queries(T,"cuda"); pg=torch.randperm(T*L//64,device="cuda").view(T,-1).int(); n=torch.full((T,),L,dtype=torch.int32,device="cuda")
    return lambda v: (lambda: il.index_logits_decode(iq,iw,ic,pg,n,config=il.DecodeConfig(block_keys=v[0],tiles=v[1],num_stages=v[2])))
def variants():
    for T,L in ((64,32768),(128,32768),(16,32768),(64,4096)):
        f=logits_inputs(T,L); base=f(LOGITS[0])()
        for v in LOGITS:
            try: say("logits decode",T,L,v,f"{per(f(v)):.1f} us","same bits",torch.equal(f(v)(),base))
            except Exception as e: say(v,repr(e)[:200])
    fl=lambda n: 2*n*128*2048*1088
    for sp in (1,4):
        t=ms(attention(4096,32768,sp,200,40)); say("attention 4096 queries, 32768 keys, splits",sp,f"{t*1e3:.0f} us {fl(4096)/t/1e9:.0f} TF")
def slice_():
    from bench.layers import kernel_times
    from bench.layers_prefill import line_of_prefill, measure_prefill
    model=random_slice(true_width(moe_layers=4),1024,torch.device("cuda")); torch.cuda.synchronize(); say("slice made",torch.cuda.memory_allocated()/1e9)
    from bench.layers import measure, line_of
    results=[]
    for n,length,chunk,mode in ((16,4096,16384,"throughput"),(16,4096,16384,"exact"),(16,4096,8192,"throughput"),(16,4096,8192,"exact"),(2,32768,8192,"throughput"),(2,32768,8192,"exact")):
        if time.time()-T0>150: break
        prof=(length,chunk) in ((4096,16384),(32768,8192))
        try:
            torch.cuda.reset_peak_memory_stats(); before=torch.cuda.memory_allocated()
            r=measure_prefill(model,n,length,chunk,exact=mode=="exact",kernel_times=kernel_times if prof else None)
            say(line_of_prefill(r),"finite",r["finite"],"peak over the model GB",(torch.cuda.max_memory_allocated()-before)/1e9); results.append(r)
            if prof:
                tokens=n*length
                for k,us in list(r["kernels_us"].items())[:20]: print(f"      {us/1e3:9.2f} ms {us/sum(r['kernels_us'].values()):6.1%} {us*1e3/tokens/5:7.2f} ns/token/layer {k[:70]}",flush=True)
            torch.cuda.empty_cache()
        except Exception:
            traceback.print_exc(file=sys.stdout)
        json.dump(results,open(f"{OUT}/layers-prefill-results.json","w"),indent=1)
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
