"""The look and the behaviour of `graph_page`: its style sheet and its script."""

FAMILIES = [
    "conv",
    "matmul",
    "pool",
    "norm",
    "elementwise",
    "reduce",
    "shape",
    "index",
    "softmax",
    "update",
    "random",
    "resize",
]

STYLE = """
:root{color-scheme:light dark;--paper:#f6f7f9;--card:#fff;--ink:#1b2430;--soft:#5d6b7c;--faint:#98a4b3;--rule:#dfe4ea;
--edge:#a9b4c2;--mark:#0b63ce;
--conv:#2f6fde;--matmul:#7a4fd8;--pool:#0f958a;--norm:#b8860b;--elementwise:#e0662a;--reduce:#cf3a7c;--shape:#7b8794;
--index:#2a93b8;--softmax:#c2334d;--update:#5b8a1e;--random:#9a6a1b;--resize:#4a7fa5;--other:#66707c}
@media(prefers-color-scheme:dark){:root{--paper:#12161c;--card:#1c222b;--ink:#e8edf3;--soft:#a3b0c0;--faint:#71808f;
--rule:#2d3641;--edge:#4d5a69;--mark:#6fb0ff}}
*{box-sizing:border-box}body{margin:0;font:14px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:var(--ink);
background:var(--paper);height:100vh;display:flex;flex-direction:column}
header{padding:14px 22px 12px;border-bottom:1px solid var(--rule);background:var(--card)}
h1{margin:0;font-size:21px;display:inline}header p{display:inline;margin-left:12px;color:var(--soft);
font-family:ui-monospace,Menlo,Consolas,monospace;font-size:12px}
.tiles{display:flex;gap:30px;margin-top:10px;flex-wrap:wrap}.tiles div{color:var(--soft);font-size:12px}
.tiles b{display:block;font-size:17px;color:var(--ink);font-weight:600;white-space:nowrap}
main{flex:1;display:flex;min-height:0}#graph{flex:1;display:flex;flex-direction:column;min-width:0}
.bar{display:flex;gap:6px;padding:8px 14px;align-items:center;border-bottom:1px solid var(--rule)}
.bar input{width:230px}.bar input,.bar button{font:inherit;font-size:13px;padding:3px 9px;border:1px solid var(--rule);
border-radius:6px;background:var(--card);color:var(--ink)}.legend{margin-left:12px;display:flex;gap:10px;flex-wrap:wrap}
.legend span{font-size:12px;color:var(--soft);white-space:nowrap}
#pane{flex:1;overflow:auto;padding:10px}#drawing{display:block;margin:0 auto}
aside{width:478px;flex:none;border-left:1px solid var(--rule);background:var(--card);overflow-y:auto;padding:6px 18px 30px}
h2{font-size:14px;margin:18px 0 6px}.hint{color:var(--faint);font-size:12.5px}
.card{fill:var(--card);stroke:var(--rule)}.node{cursor:pointer}.node:hover .card{stroke:var(--faint)}
.edge{fill:none;stroke:var(--edge);stroke-width:1.4}#tip path{fill:var(--edge)}
svg text{font-size:11px;fill:var(--soft)}svg .op{font-size:13.5px;font-weight:600;fill:var(--ink)}
svg .shape{font-size:11.5px;fill:var(--ink)}
svg .line,svg .far{font-family:ui-monospace,Menlo,Consolas,monospace;font-size:9.3px;
fill:var(--faint)}svg .far{text-anchor:middle;fill:var(--mark)}svg .time{text-anchor:end;fill:var(--ink);font-size:12px}
.share{fill:var(--mark);opacity:.75}.terminal rect{fill:none;stroke:var(--edge);stroke-dasharray:4 3}
.terminal text{text-anchor:middle}
.chosen .card{stroke:var(--mark);stroke-width:2.5}.near .card{stroke:var(--mark)}.dim{opacity:.22}
.scroll{max-height:330px;
overflow:hidden auto;border:1px solid var(--rule);border-radius:8px;margin-top:8px}
table{border-collapse:collapse;width:100%;font-size:12.5px}th{position:sticky;top:0;background:var(--card);text-align:left;
color:var(--soft);font-weight:500}td,th{padding:3px 7px;border-bottom:1px solid var(--rule);white-space:nowrap}
td:nth-child(n+2),th:nth-child(n+2){text-align:right}
tr[data-n]{cursor:pointer}tr[data-n]:hover td,tr.chosen td{background:var(--paper)}

td:first-child{max-width:168px;overflow:hidden}td small{display:block;color:var(--faint);font-size:11px;margin-left:14px}
.dot{display:inline-block;width:8px;height:8px;border-radius:2px;margin-right:6px}

.meter{display:inline-block;width:38px;height:6px;background:var(--rule);border-radius:3px;margin-right:7px;vertical-align:middle}
.meter i{display:block;height:6px;border-radius:3px;background:var(--mark)}
.stack{display:flex;height:20px;border-radius:5px;overflow:hidden}
.stack i{font:11px/20px system-ui;color:#fff;text-align:center;
overflow:hidden;font-style:normal}
.plan{width:100%;border:1px solid var(--rule);border-radius:8px;padding:8px}.plan rect{opacity:.8}.plan rect:hover{opacity:1}
.plan text{paint-order:stroke;stroke:var(--card);stroke-width:3px}
.plan .bound{stroke:var(--ink);stroke-dasharray:5 4;stroke-width:.8;fill:none}.scratch{fill:var(--faint)}
details{margin-top:14px}summary{cursor:pointer;font-weight:600}pre{font:11px/1.5 ui-monospace,Menlo,Consolas,monospace;
overflow:auto;max-height:420px;background:var(--paper);padding:8px;border-radius:6px}
#selection{min-height:38px}dl{margin:12px 0 0;font-size:12.5px;display:grid;grid-template-columns:86px 1fr;gap:3px 8px}
dt{color:var(--soft)}dd{margin:0;white-space:pre-wrap;overflow-wrap:anywhere;font-family:ui-monospace,Menlo,Consolas,monospace;
font-size:11.5px}
""" + "".join(f".f-{name}{{fill:var(--{name});background:var(--{name})}}" for name in [*FAMILIES, "other"])

SCRIPT = """
const svg=document.getElementById('drawing'),pane=document.getElementById('pane'),wide=svg.viewBox.baseVal.width,
high=svg.viewBox.baseVal.height,box=document.getElementById('selection'),hint=box.innerHTML;let scale=1;
function zoom(s){scale=Math.min(3,Math.max(.05,s));svg.setAttribute('width',wide*scale);svg.setAttribute('height',high*scale)}
function fit(){zoom((pane.clientWidth-24)/wide)}
function all(q){return[...document.querySelectorAll(q)]}
function choose(n,from){all('.chosen,.near').forEach(e=>e.classList.remove('chosen','near'));
if(n===null){box.innerHTML=hint;return}
const d=details[n],list=document.createElement('dl');
for(const[k,v]of d.facts){const a=document.createElement('dt'),b=document.createElement('dd');a.textContent=k;b.textContent=v;
list.append(a,b)}box.replaceChildren(list);
all('[data-n="'+n+'"]').forEach(e=>e.classList.add('chosen'));
for(const m of[...d.above,...d.below]){const e=document.getElementById('n'+m);if(e)e.classList.add('near')}
if(from==='row')document.getElementById('n'+n).scrollIntoView({block:'center',inline:'center'});
else if(from==='card'){const r=document.querySelector('tr[data-n="'+n+'"]'),s=r.closest('.scroll');
s.scrollTop=r.offsetTop-s.clientHeight/2}}
all('.node').forEach(e=>e.addEventListener('click',()=>choose(+e.dataset.n,'card')));
all('tr[data-n]').forEach(e=>e.addEventListener('click',()=>choose(+e.dataset.n,'row')));
document.getElementById('in').onclick=()=>zoom(scale*1.25);document.getElementById('out').onclick=()=>zoom(scale/1.25);
document.getElementById('fit').onclick=fit;document.addEventListener('keydown',e=>{if(e.key==='Escape')choose(null)});
document.getElementById('find').oninput=e=>{const q=e.target.value.toLowerCase();
all('.node').forEach(g=>g.classList.toggle('dim',q!==''&&!details[+g.dataset.n].facts.some(f=>f[1].toLowerCase().includes(q))));
const first=q&&document.querySelector('.node:not(.dim)');if(first)first.scrollIntoView({block:'center',inline:'center'})};
zoom(Math.min(1,Math.max(.7,(pane.clientWidth-24)/wide)));
const top_=document.querySelector('.terminal,.node');if(top_)top_.scrollIntoView({block:'nearest',inline:'center'});
if(/^#n\\d+$/.test(location.hash))choose(+location.hash.slice(2),'row');
"""
