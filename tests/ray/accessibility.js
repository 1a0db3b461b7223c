// The faults of the page that is open, in words, for those who do not see it, or see it otherwise: names,
// landmarks, headings, tables, keyboard, and contrast as WCAG 2 counts it (AA).
(() => {
  const faults = [], all = [...document.querySelectorAll("body *")];
  const seen = e => e.offsetParent !== null && getComputedStyle(e).visibility === "visible" && !e.closest(".unseen");
  const name = e => (e.getAttribute("aria-label") || (e.getAttribute("aria-labelledby") || "").split(" ").filter(Boolean)
    .map(id => (document.getElementById(id) || {}).textContent || "MISSING").join(" ")
    || (e.labels && [...e.labels].map(l => l.textContent).join(" ")) || e.textContent || "").trim();
  const say = (e, what) => faults.push(`${e.tagName.toLowerCase()}#${e.id}.${e.className}: ${what}`);
  if (!document.documentElement.lang) faults.push("html has no lang");
  if (document.querySelectorAll("main").length !== 1 || document.querySelectorAll("h1").length !== 1) faults.push("not one main and one h1");
  const ids = all.map(e => e.id).filter(Boolean);
  ids.filter((id, i) => ids.indexOf(id) !== i).forEach(id => faults.push(`two have the id ${id}`));
  let level = 1;
  for (const h of document.querySelectorAll("h1,h2,h3,h4")) { const own = Number(h.tagName[1]); if (own > level + 1) say(h, "skips a level"); level = own; }
  for (const e of document.querySelectorAll("button,input,textarea,select,a[href],canvas[tabindex],[role=region],[role=img],section"))
    if (!name(e) || name(e).includes("MISSING")) say(e, "has no name");
  for (const e of document.querySelectorAll("[aria-describedby],[aria-labelledby]"))
    for (const a of ["aria-describedby", "aria-labelledby"]) for (const id of (e.getAttribute(a) || "").split(" ").filter(Boolean)) if (!document.getElementById(id)) say(e, `${a} leads nowhere`);
  for (const th of document.querySelectorAll("th")) if (!th.scope) say(th, "has no scope");
  for (const e of all) if (e.tabIndex > 0) say(e, "takes the keyboard out of turn");
  for (const e of all) if (seen(e) && /auto|scroll/.test(getComputedStyle(e).overflowY) && e.scrollHeight > e.clientHeight + 1 && e.tabIndex < 0) say(e, "scrolls, but not by keyboard");
  const rgb = text => { const n = text.match(/[\d.]+/g).map(Number); return {c: n.slice(0, 3), a: n.length > 3 ? n[3] : 1}; };
  const paper = e => { for (; e; e = e.parentElement) { const {c, a} = rgb(getComputedStyle(e).backgroundColor); if (a === 1) return c; } return rgb(getComputedStyle(document.body).backgroundColor).c; };
  const light = c => { const [r, g, b] = c.map(v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }); return .2126 * r + .7152 * g + .0722 * b; };
  for (const e of all) {
    if (!seen(e) || e.getAttribute("aria-hidden") === "true" || ![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim() && !/^[\u25a0\s]+$/.test(n.textContent))) continue;
    if (e.disabled) continue;
    const ink = light(rgb(getComputedStyle(e).color).c), under = light(paper(e)), ratio = (Math.max(ink, under) + .05) / (Math.min(ink, under) + .05);
    if (ratio < 4.5) say(e, `contrast ${ratio.toFixed(2)}`);
  }
  return faults;
})()
