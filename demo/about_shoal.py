"""What can be asked about Shoal and its parts, and the answers.

Written as demo/about_topics.py says. Knows nothing of how a question is drawn.
"""

SHOAL_TOPICS = """\
? <MLA>
? <multi-head latent attention>
? <latent attention>
= MLA is multi-head latent attention: it keeps a small latent vector per token instead of keys and values.
* latent

? <DSA>
? <sparse attention>
? <DeepSeek sparse attention>
= DSA is DeepSeek sparse attention: an indexer chooses past tokens and attention reads only those.
* sparse attention | indexer | reads only

? <the indexer>
? <the lightning indexer>
? <an indexer>
? What [does|will] [the|an] indexer do?
= The indexer scores past tokens and chooses those that attention may read.
* scores past tokens

? <MTP>
? <multi-token prediction>
? <the MTP layer>
= MTP is multi-token prediction: an extra layer that predicts one more token ahead.
* multi-token | ahead

? <MoE>
? <a mixture of experts>
? <mixture of experts>
= MoE is mixture of experts: a gate sends each token to a few of many small networks.
* gate | few

? <the gate>
? <a gate>
? <your gate>
? What [does|will] [the|a] gate do?
= The gate picks eight experts for each token.
* eight experts

? <an expert>
? <a routed expert>
? What [are experts|does an expert do]?
= An expert is one of the small networks of a MoE layer.
* one of the small networks

? <the shared expert>
? <a shared expert>
? <your shared expert>
= The shared expert is the network that every token takes.
* every token

? <Shoal>
? <this project>
? <the Shoal project>
= Shoal serves DeepSeek-V3.2-architecture models from a Ray cluster.
* serves | deepseek-v3.2 | ray

? <an expert actor>
? <the expert actor>
? What [are expert actors|do expert actors do]?
= Expert actors own shards of the routed experts. They hold no request state.
* own shards | routed experts

? <an attention actor>
? <the attention actor>
? What [are attention actors|do attention actors do]?
= Attention actors own the sequences and all of the model but the routed experts.
* own the sequences

? <the router>
? <the token-dispatch router>
? <dispatch>
? What [does|will] the router do?
= The router carries the hidden state of each token to its experts and back over sockets.
* hidden state | experts

? <the ingress>
? <an ingress>
? <the Ray Serve ingress>
? What [does|will] the ingress do?
= The ingress speaks the OpenAI API and keeps a journal of each request.
* openai | journal

? <the journal>
? <a journal>
? <the request journal>
= The journal of a request lets its stream outlive the actor that was computing it.
* stream | outlive

? <a replica>
? <an expert replica>
? What are replicas[| for]?
= A replica is a copy of an expert on another actor: any replica may answer.
* copy

? Who [is Shoal for|needs Shoal|should use Shoal|uses Shoal|is Shoal made for|is this project for]?
? Why [should I use|would I use|would I need] [Shoal|this project]?
? [For whom|For what people] is [Shoal|this project] made?
= Shoal is for people who run mixture-of-experts models and do not want to lose streams when a process dies.
* mixture-of-experts

? [How do I|How can I|How to] [start|run|launch] [the server|Shoal|the Shoal server|you]?
? What is the command to [start|run|launch] [the server|Shoal]?
? [How do I|How can I|How to] serve?
= Run `make serve`.
* make serve

? [How do I|How can I|How to] [stop|end|quit|shut down] [the server|Shoal|the Shoal server|you|it]?
? What is the command to [stop|end|quit] [the server|Shoal]?
= Press Ctrl-C.
* ctrl-c

? [How do I|How can I|Can I|How to] [use|serve|load|run] [another|my own|a different|my] model?
= Run `shoal serve DIR` with the directory of a deepseek_v32 or deepseek_v3 checkpoint.
* shoal serve dir

? [Which|What] [models|checkpoints] can [Shoal|I] [serve|use|load|run]?
? [Which|What] [models|checkpoints] [work|does Shoal support|does Shoal serve|are supported]?
= Hugging Face checkpoints of deepseek_v32 or deepseek_v3 in bf16, fp32 or FP8.
* checkpoints of deepseek_v32 or deepseek_v3

? [What|Which] port [do you use|is it|does Shoal use|is it on|does the server use]?
? On [what|which] port [does Shoal listen|does the server listen|do you listen]?
? What is the port[| of Shoal| of the server]?
= Port 8000, unless you set --port.
* port 8000

? [What|Which] address [do you listen on|does Shoal listen on|does the server listen on|is it]?
? What is the [address|URL][| of the server| of Shoal]?
? Where [does Shoal|does the server|do you] listen?
= http://127.0.0.1:8000 unless you set --host and --port.
* 127.0.0.1:8000

? [How do I|How can I|Can I|How to] [change|set|choose] the port[| of Shoal| of the server]?
? [How do I|How can I|Can I|How to] use [another port|a different port]?
= Run `shoal serve --port N`.
* serve --port

? How many expert actors [are there|run|does Shoal start|do I get|does Shoal run]?
? [How do I|How can I|How to] [set|change|choose] the number of expert actors?
? [How do I|How can I|How to] [add|get|start] [|more ]expert actors?
= Two, unless you set --experts.
* two | --experts

? [How do I|How can I|How to] [get|add|use|start] [|more ]replicas?
? [How do I|How can I|How to] [set|change|choose] the number of replicas?
= Set --replicas-per-expert.
* --replicas-per-expert

? [Which|What] options [are there|can I set|does shoal serve have|does Shoal have|do I have]?
? [Where are|Where do I find|How do I see|How do I find|Show me] [the|all] options[| of Shoal]?
= Run `shoal serve --help`.
* shoal serve --help

? [Can I|How do I|How can I|How to] [use|write|load] a [config|YAML|config file|YAML file]?
? Is there a [config|config file|YAML file]?
= Yes: run `shoal serve --config shoal.yaml`.
* --config

? [How do I|How can I|How to] [run the tests|test Shoal|test it|start the tests|test the code]?
? What [runs|starts] the tests?
= Run `make test`.
* make test

? [How do I|How can I|How to] [check|lint] [the code|Shoal|it]?
? [How do I|How can I|How to] run the [checks|linter]?
? What does CI run?
= Run `make check`.
* make check

? [Which|What] API [do you speak|does Shoal speak|is this|does the server speak|do you have|does Shoal have]?
? What is the API[| of Shoal| of the server]?
? [Is there an|Do you speak the|Does Shoal speak the] OpenAI API?
? [How do I|How can I] send a request?
= The OpenAI API, for example POST /v1/chat/completions.
* openai | /v1/chat/completions

? [What is|Which is|Tell me] the [licence|license][| of Shoal| of this project].
? [Which|What] [licence|license] does [Shoal|this project] have?
? Is [Shoal|this project] [free|open source|free to use]?
= Shoal is under the Apache-2.0 licence.
* apache-2.0

? What [happens when|happens if|if] [a process|an actor|any actor] [dies|is killed|crashes|fails]?
? What happens after a crash?
= No request fails when an expert or attention actor dies: lost rows are asked for again, lost sequences
  resume elsewhere.
* no request fails | resume elsewhere

? What [happens when|happens if|if] [an|one] expert actor [dies|is killed|crashes|fails]?
= Its rows are asked for again elsewhere; no request fails.
* its rows | asked for again elsewhere

? What [happens when|happens if|if] [an|one] attention actor [dies|is killed|crashes|fails]?
= Its sequences resume on another attention actor; the stream goes on with the same tokens.
* its sequences resume

? What does [Shoal|this project] [promise|guarantee]?
? [What is|Tell me] the [promise|guarantee] of [Shoal|this project].
? What is [special|exact|new] about [Shoal|this project]?
= The greedy text does not depend on batch mates, chunks, the number of actors or faults.
* does not depend

? [Which|What] [Python|version of Python|Python version] [do I need|does Shoal need|is needed|should I use]?
? Do I need [Python|a Python version]?
= Python 3.11 or later.
* 3.11

? What is Ray [for|used for|doing][| here| in Shoal]?
? What does Ray do[| here| in Shoal]?
? Why [does Shoal use Ray|Ray|is Ray used|do you use Ray]?
= Ray starts the processes and hears of their deaths. Tokens and hidden states travel over sockets.
* starts the processes"""
