"use strict";
// The token explorer. Columns come as base64 (cft/report/explorer.py); text enters the page as text alone. Responses are
// empty boxes of estimated height until they are near the visible part of the list, and become empty again behind it.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = id => document.getElementById(id);
  const unpack = column => {
    const bytes = Uint8Array.from(atob(column.slice(3)), char => char.charCodeAt(0));
    return new ({ u1: Uint8Array, u2: Uint16Array, u4: Uint32Array })[column.slice(0, 2)](bytes.buffer);
  };
  const columns = {};
  for (const name of ["length", "level", "kind", "id", "alternative", "answer_id", "logprob", "entropy",
    "alternative_logprob", "outcome"]) columns[name] = unpack(data[name]);
  const levels = ["plain", "wavering", "critical", "untried"], UNTRIED = 3;
  const names = levels.map(level => level === "critical" ? data.word : level);
  const total = columns.level.length;

  // Where each response's tokens, and each token's text, begin.
  const first = [0], textAt = new Uint32Array(total + 1);
  for (const count of data.count) first.push(first[first.length - 1] + count);
  for (let i = 0; i < total; i++) textAt[i + 1] = textAt[i] + columns.length[i];
  const textOf = i => data.text.slice(textAt[i], textAt[i + 1]);
  const responseText = r => data.text.slice(textAt[first[r]], textAt[first[r + 1]]);
  const countsOf = level => data.count.map((_, r) => {
    let n = 0;
    for (let i = first[r]; i < first[r + 1]; i++) n += columns.level[i] === level;
    return n;
  });
  const criticals = countsOf(2), untried = countsOf(UNTRIED);
  const fractionOf = r => criticals[r] / Math.max(data.count[r] - untried[r], 1);  // of the tokens that were tried

  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const UNKNOWN = 65535;  // of cft/report/explorer.py: an engine that computes no entropy
  const percent = fraction => fraction >= 0.001 ? (100 * fraction).toFixed(1) + " %" : "< 0.1 %";
  const whole = n => n.toLocaleString("en-US");
  const rounded = fraction => Math.round(100 * fraction) + " %";

  // ---- filters

  const kindBoxes = data.kinds.map((kind, k) => {
    const label = element("label"), box = element("input");
    box.type = "checkbox";
    box.checked = true;
    box.dataset.kind = k;
    label.append(box, kind);
    label.hidden = !columns.kind.includes(k);
    byId("kind-choice").append(label);
    return box;
  });

  const filter = { search: "", kinds: null, level: -1, from: 0, to: 100, order: "" };
  const readFilter = () => {
    filter.search = byId("search").value.trim().toLowerCase();
    filter.kinds = kindBoxes.map(box => box.checked);
    filter.level = byId("level").value === "" ? -1 : Number(byId("level").value);
    filter.from = Number(byId("from").value || 0);
    filter.to = Number(byId("to").value || 100);
    filter.order = byId("order").value;
    filter.all = filter.kinds.every(Boolean) && filter.level < 0 && filter.from <= 0 && filter.to >= 100;
  };
  // A token at t of n lies at 100 t / n percent; the upper limit counts only where it is below 100.
  const matches = (i, t, n) => filter.all || (filter.kinds[columns.kind[i]] && (filter.level < 0 || columns.level[i] === filter.level)
    && 100 * t >= filter.from * n && (filter.to >= 100 || 100 * t < filter.to * n));
  const found = r => !filter.search || [data.problem[r], responseText(r), data.gold[r]]
    .some(text => text.toLowerCase().includes(filter.search));

  const list = byId("responses");
  let observer = null;

  const apply = () => {
    hideTip();
    readFilter();
    const shown = [], tokens = data.kinds.map(() => 0), critical = data.kinds.map(() => 0);
    let left = 0;
    for (let r = 0; r < data.count.length; r++) {
      if (!found(r)) continue;
      const n = data.count[r];
      let any = false;
      for (let t = 0; t < n; t++) {
        const i = first[r] + t;
        if (!matches(i, t, n)) continue;
        any = true;
        if (columns.level[i] === UNTRIED) left++; else tokens[columns.kind[i]]++;
        critical[columns.kind[i]] += columns.level[i] === 2;
      }
      if (any || filter.all) shown.push(r);
    }
    if (filter.order === "most") shown.sort((a, b) => fractionOf(b) - fractionOf(a) || a - b);
    if (filter.order === "least") shown.sort((a, b) => fractionOf(a) - fractionOf(b) || a - b);
    if (filter.order === "long") shown.sort((a, b) => data.count[b] - data.count[a] || a - b);
    const sum = values => values.reduce((a, b) => a + b, 0);
    byId("status").textContent = `${whole(shown.length)} of ${whole(data.count.length)} responses, `
      + `${whole(sum(tokens) + left)} of ${whole(total)} tokens, ${whole(sum(critical))} of them ${data.word}`
      + (sum(tokens) ? ` (${rounded(sum(critical) / sum(tokens))})` : "") + (left ? `, ${whole(left)} not tried` : "");
    drawKinds(tokens, critical);
    drawList(shown);
  };

  const drawKinds = (tokens, critical) => {
    const head = element("tr"), row = element("tr");
    head.append(element("th", "", `${data.word} fraction by kind`));
    row.append(element("td"));
    data.kinds.forEach((kind, k) => {
      if (!tokens[k]) return;
      head.append(element("th", "", kind));
      row.append(element("td", "", `${rounded(critical[k] / tokens[k])} of ${whole(tokens[k])}`));
    });
    byId("kinds").replaceChildren(head, row);
  };

  // ---- the list

  const drawList = shown => {
    if (observer) observer.disconnect();
    observer = new IntersectionObserver(entries => {
      for (const entry of entries) entry.isIntersecting ? fill(entry.target) : empty(entry.target);
    }, { root: list, rootMargin: "800px 0px" });
    const width = Math.max(list.clientWidth - 34, 200);
    const cards = shown.map(r => {
      const card = element("article", "card");
      card.dataset.r = r;
      const size = textAt[first[r + 1]] - textAt[first[r]];
      const lines = Math.ceil(size * 8.8 / width) + Math.ceil(data.problem[r].length * 7.3 / width);
      card.style.minHeight = 60 + 26 * lines + "px";
      return card;
    });
    list.replaceChildren(...cards);
    list.scrollTop = 0;
    for (const card of cards) observer.observe(card);
  };

  const fill = card => {
    if (card.firstChild) return;
    const r = Number(card.dataset.r), n = data.count[r];
    card.setAttribute("aria-label", "response " + (r + 1));
    card.append(element("p", "note", `${r + 1} · answer ${data.gold[r]} · ${criticals[r]} of ${n} tokens ${data.word} `
      + `(${rounded(fractionOf(r))})` + (untried[r] ? `, ${untried[r]} not tried` : "")));
    card.append(element("div", "problem", data.problem[r]));
    const response = element("div", "response");
    for (let t = 0; t < n; t++) {
      const i = first[r] + t, text = textOf(i);
      const token = element("span", "t " + levels[columns.level[i]], text || data.name[columns.id[i]]);
      if (!text) token.classList.add("special");
      if (!matches(i, t, n)) token.classList.add("dim");
      token.dataset.i = i;
      token.tabIndex = t ? -1 : 0;
      response.append(token);
    }
    card.append(response);
    card.style.minHeight = "";
  };

  const empty = card => {
    if (!card.firstChild || card.contains(document.activeElement)) return;
    card.style.minHeight = card.offsetHeight + "px";
    card.replaceChildren();
  };

  // ---- the tooltip

  const tip = byId("tip");
  const verdictClass = verdict => verdict.split(" ")[0];
  const line = (...values) => {
    const row = element("tr");
    values.forEach(([text, className], at) => row.append(element(at ? "td" : "th", className, text)));
    return row;
  };

  const tipOf = i => {
    let r = 0, high = data.count.length - 1;
    while (r < high) {
      const middle = (r + high + 1) >> 1;
      if (first[middle] <= i) r = middle; else high = middle - 1;
    }
    const t = i - first[r], own = columns.logprob[i], table = element("table"), head = element("tr");
    for (const name of ["rank", "token", "probability", "answer", "verdict"]) head.append(element("th", "", name));
    table.append(head, line(["chosen"], [data.name[columns.id[i]], "mono"], [percent(Math.exp(-own / 1000))],
      [data.gold[r]], ["right", "right"]));
    for (let j = 0; j < data.k; j++) {
      const at = i * data.k + j, verdict = data.outcomes[columns.outcome[at]];
      // A given response may be less probable than its alternatives; a greedy one never is.
      const rank = j + 1 + (columns.alternative_logprob[at] >= own);
      table.append(line([String(rank)], [data.name[columns.alternative[at]], "mono"],
        [percent(Math.exp(-columns.alternative_logprob[at] / 1000))], [data.answers[columns.answer_id[at]] || "–"],
        [verdict, verdictClass(verdict)]));
    }
    const note = `${names[columns.level[i]]} ${data.kinds[columns.kind[i]]}, token ${t + 1} of ${data.count[r]}, `
      + (columns.entropy[i] === UNKNOWN ? "entropy unknown" : `entropy ${(columns.entropy[i] / 1000).toFixed(2)} nats`);
    return [table, element("p", "note", note)];
  };

  const showTip = token => {
    tip.replaceChildren(...tipOf(Number(token.dataset.i)));
    tip.hidden = false;
    token.setAttribute("aria-describedby", "tip");
    const at = token.getClientRects()[0] || token.getBoundingClientRect(), box = tip.getBoundingClientRect();
    const below = at.bottom + 6 + box.height <= window.innerHeight;
    tip.style.left = Math.max(6, Math.min(at.left, window.innerWidth - box.width - 6)) + "px";
    tip.style.top = Math.max(6, below ? at.bottom + 6 : at.top - box.height - 6) + "px";
  };
  const hideTip = () => {
    tip.hidden = true;
    for (const token of document.querySelectorAll("[aria-describedby=tip]")) token.removeAttribute("aria-describedby");
  };
  const tokenOf = event => event.target instanceof Element ? event.target.closest(".t") : null;

  list.addEventListener("mouseover", event => tokenOf(event) ? showTip(tokenOf(event)) : hideTip());
  list.addEventListener("mouseleave", hideTip);
  list.addEventListener("focusin", event => { if (tokenOf(event)) showTip(tokenOf(event)); });
  list.addEventListener("focusout", hideTip);
  list.addEventListener("scroll", () => { if (!list.contains(document.activeElement)) hideTip(); });
  list.addEventListener("keydown", event => {
    const token = tokenOf(event);
    if (!token) return;
    const all = [...token.parentElement.children], at = all.indexOf(token);
    const isCritical = one => one.classList.contains("critical");
    const next = {
      ArrowRight: () => all[at + 1],
      ArrowLeft: () => all[at - 1],
      ArrowDown: () => all.slice(at + 1).find(isCritical),
      ArrowUp: () => all.slice(0, at).reverse().find(isCritical),
      Home: () => all[0],
      End: () => all[all.length - 1],
      Escape: () => { hideTip(); return null; },
    }[event.key];
    if (!next) return;
    event.preventDefault();
    const target = next();
    if (!target) return;
    token.tabIndex = -1; // one stop of the tabulator a response: where one left it
    target.tabIndex = 0;
    target.focus();
  });

  for (const id of ["search", "from", "to"]) byId(id).addEventListener("input", apply);
  for (const id of ["level", "order", "kind-choice"]) byId(id).addEventListener("change", apply);
  byId("reset").addEventListener("click", () => {
    byId("search").value = byId("level").value = byId("order").value = "";
    byId("from").value = 0;
    byId("to").value = 100;
    for (const box of kindBoxes) box.checked = true;
    apply();
  });
  byId("controls").hidden = false;
  apply();
  document.documentElement.dataset.ready = Math.round(performance.now());
})();
