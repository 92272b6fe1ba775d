// The page: what is typed -> ids -> scores -> what is seen. DATA is written by page.py.

// ------------------------------------------------------------------------------------ opening it

// float32, compressed: first the lowest bytes of all numbers, then all second ones, and so on.
const numbers = async (base64) => {
  const packed = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer()), n = bytes.length / 4;
  const words = Uint32Array.from({ length: n }, (_, i) =>
    bytes[i] | bytes[n + i] << 8 | bytes[2 * n + i] << 16 | bytes[3 * n + i] << 24);
  return new Float32Array(words.buffer);
};

// Names with dots become objects: model.encoder.layer[0].ffn.W1.weight is a list of rows.
const openModel = async ({ config, parameters, weights }) => {
  const model = { config, encoder: { layer: [] } }, all = await numbers(weights);
  let start = 0;
  for (const [name, shape] of Object.entries(parameters)) {
    const path = name.split("."), last = path.pop();
    const place = path.reduce((at, key) => at[key] ??= {}, model);
    const [count, size] = shape.length > 1 ? shape : [1, shape[0]];
    const rows = Array.from({ length: count }, () => all.subarray(start, start += size));
    place[last] = shape.length > 1 ? rows : rows[0];
  }
  return model;
};

// BERT's WordPiece, as in qa/tokenizer.py.
const openTokenizer = (t) => {
  const ids = new Map(t.vocab.map((token, id) => [token, id]));
  const escaped = t.added.map((token) => token.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  const added = new RegExp(`(${escaped.join("|")})`), splits = /[\p{P}$+<=>^`|~]/gu;
  const cjk = new RegExp(`[${t.cjk}]`, "gu");
  const normalize = (text) => {
    text = text.replace(/(?![\t\n\r])[\p{Cc}\p{Cf}\p{Co}\p{Cs}\ufffd]/gu, "");
    if (t.tokenize_chinese_chars) text = text.replace(cjk, " $& ");
    if (t.strip_accents ?? t.do_lower_case) text = text.normalize("NFD").replace(/\p{Mn}/gu, "");
    return t.do_lower_case ? Array.from(text, (c) => c.toLowerCase()).join("") : text;
  };
  const pieces = (word) => {
    const found = [], letters = [...word];
    for (let start = 0, end; start < letters.length; start = end) {
      const piece = () => (start ? "##" : "") + letters.slice(start, end).join("");
      for (end = letters.length; end > start && !ids.has(piece());) end--;
      if (end === start || letters.length > 100) return [t.unk_token_id];
      found.push(ids.get(piece()));
    }
    return found;
  };
  const words = (text) => normalize(text).replace(splits, " $& ").split(/\s+/u).filter(Boolean);
  const encode = (text) => text.split(added).flatMap((part, i) =>
    i % 2 ? ids.get(part) : words(part).flatMap(pieces));
  const borders = new RegExp(`(${escaped.join("|")}|\\s+|${splits.source})`, "u");
  return {
    encode, ...t, parts: (text) => text.split(borders),
    unknown: (part) => part?.trim() && encode(part).includes(t.unk_token_id),
  };
};

const openRun = async (run) => ({
  name: run.name, model: await openModel(run), tokenizer: openTokenizer(run.tokenizer),
  known: new Map(),  // answers that were worked out
});

// ----------------------------------------------------------------------------- a question's answer

// All of a question that an answer depends on.
const told = ({ context, question, choices, facts }) =>
  JSON.stringify([context, question, choices, facts]);

// What a run says of the question `q`: for each choice its probability, and what was seen.
const answer = (run, q) => {
  const key = told(q);
  if (!run.known.has(key)) run.known.set(key, work(run, q));
  return run.known.get(key);
};

const work = ({ model, tokenizer }, q) => {
  const { encode, cls_token_id: cls, sep_token_id: sep } = tokenizer;
  const first = [cls, ...encode(q.context), ...encode(q.question), sep];
  const segment = Math.min(1, model.config.type_vocab_size - 1);
  const choices = q.choices.map((choice, i) => {
    const second = [...encode(choice), sep];
    const facts = q.facts.map(({ text, on, of }, n) => {
      const ids = on && (of?.[i] ?? true) ? encode(text) : [];
      return { text, n, ids: ids.slice(0, model.config.max_tokens) };
    }).filter(({ ids }) => ids.length);
    const segments = [...first.map(() => 0), ...second.map(() => segment)];
    const seen = kformer(model, [...first, ...second], segments, facts.map(({ ids }) => ids));
    return seen && { ...seen, facts: seen.keptPlaces.map((n) => facts[n]),
      tokens: seen.inputIds.map((id) => tokenizer.vocab[id]) };
  });
  if (choices.includes(null)) return null;
  const probabilities = softmax(choices.map(({ score }) => score));
  return choices.map((seen, i) => ({ ...seen, probability: probabilities[i] }));
};

const best = (answers) =>
  answers.reduce((most, { probability: p }, i) => p > answers[most].probability ? i : most, 0);

// ----------------------------------------------------------------------------- what can be changed

let runs;
let state, history = [], lastKey = null;  // the question, its past, the line last typed into
let run = 0, choice = null, cell = null;  // whose picture is seen; without a choice: the likeliest

const copy = (value) => JSON.parse(JSON.stringify(value));

// All that is typed into a line is one step back; so is each click, which has no key.
const change = (key, edit) => {
  if (state && (key === null || key !== lastKey)) history.push(copy(state));
  lastKey = key;
  if (key === null) cell = null;
  edit();
  if (key === null) build(); else show();
};

const open = (number) => change(null, () => {
  state = { ...copy(DATA.questions[number].versions[0]), number };
  choice = null;
});

const undo = () => {
  if (history.length) [state, lastKey, cell] = [history.pop(), null, null];
  build();
};

// The version of the file that the question is now, if any.
const version = () =>
  DATA.questions[state.number].versions.find((one) => told(one) === told(state));

// --------------------------------------------------------------------------------------- elements

const $ = (id) => document.getElementById(id);
const el = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element[name] = value;
    else if (value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat());
  return element;
};
const percent = (share) => `${(100 * share).toFixed(1)}%`;
const two = (number) => (Math.round(100 * number) / 100 + 0).toFixed(2);

const button = (text, label, onclick, attributes = {}) =>
  el("button", { type: "button", "aria-label": label, title: label, onclick, ...attributes }, text);

// A line to type into: its text is owner[name], a part of the state. Behind it the words stand once
// more, to mark those that the vocabulary lacks.
const field = (label, owner, name) => {
  const input = el("input", { "aria-label": label, spellcheck: "false", autocomplete: "off" });
  const back = el("span", { class: "back", "aria-hidden": "true" });
  const mark = () => {
    const { parts, unknown } = runs[run].tokenizer;
    const marked = (part) => unknown(part) ? el("mark", {}, part) : part;
    back.replaceChildren(...parts(input.value).map(marked));
    back.scrollLeft = input.scrollLeft;
  };
  input.value = owner[name];
  input.oninput = () => {
    change(label, () => { owner[name] = input.value; });
    mark();
  };
  input.onscroll = mark;
  input.onblur = () => { lastKey = null; };
  mark();
  return el("span", { class: "field" }, back, input);
};

// --------------------------------------------------------- what is typed into, built after clicks

const build = () => {
  const focused = document.activeElement.id;
  const asked = state.context ? ["context", "question"] : ["question"];
  $("question").replaceChildren(...asked.map((name) => field(name, state, name)));
  $("runs").replaceChildren(el("td"), el("th", { scope: "col" }, "choice"), ...runs.map(runHead));
  $("choices").replaceChildren(...state.choices.map(choiceRow));
  $("facts").replaceChildren(...state.facts.map(factRow));
  $("number").value = state.number;
  show();
  if (focused) focus(focused, "add");
};

const focus = (...ids) => ids.map($).find((element) => element && !element.disabled)?.focus();

const runHead = ({ name }, r) => {
  const take = () => {
    [run, cell] = [r, null];
    build();
  };
  const attributes = { "aria-pressed": String(r === run), id: `run-${r}` };
  return el("th", { scope: "col" }, runs.length === 1 ? "probability"
    : button(name, `show the picture of ${name}`, take, attributes));
};

const choiceRow = (_, i) => {
  const onchange = () => {
    [choice, cell] = [i, null];
    show();
  };
  const label = `choice ${i + 1}`;
  const radio = { type: "radio", name: "choice", "aria-label": `show the picture of ${label}` };
  return el("tr", {},
    el("td", {}, el("input", { ...radio, id: `choice-${i}`, onchange })),
    el("th", { scope: "row" }, field(label, state.choices, i)),
    runs.map((_, r) => el("td", { class: "bar", id: `bar-${r}-${i}` })));
};

const factRow = (fact, n) => {
  const label = `fact ${n + 1}`, last = n === state.facts.length - 1;
  const onchange = () => change(null, () => { fact.on = !fact.on; });
  const move = (by) => () => {
    change(null, () => state.facts.splice(n + by, 0, ...state.facts.splice(n, 1)));
    focus(...(by < 0 ? ["up", "down"] : ["down", "up"]).map((name) => `${name}-${n + by}`));
  };
  const remove = () => {
    change(null, () => state.facts.splice(n, 1));
    focus(`delete-${n}`, `delete-${n - 1}`, "add");
  };
  const tick = { type: "checkbox", "aria-label": `${label} is read`, title: "no tick: silent" };
  return el("li", {},
    el("input", { ...tick, id: `on-${n}`, checked: fact.on, onchange }),
    field(label, fact, "text"),
    el("small", { id: `note-${n}` }),
    button("↑", `move ${label} up`, move(-1), { id: `up-${n}`, disabled: n === 0 }),
    button("↓", `move ${label} down`, move(1), { id: `down-${n}`, disabled: last }),
    button("✕", `delete ${label}`, remove, { id: `delete-${n}` }));
};

// ----------------------------------------------------------- what is seen, new at every key stroke

const show = () => {
  const past = history.at(-1)?.number === state.number ? history.at(-1) : null;
  const now = runs.map((each) => answer(each, state));
  const before = runs.map((each) => past && answer(each, past));
  const mine = now[run], shown = mine && (choice ?? best(mine)), file = version();
  runs.forEach((_, r) => state.choices.forEach((_, i) => bar(r, i, now[r], before[r])));
  state.choices.forEach((_, i) => {
    $(`choice-${i}`).checked = i === shown;
    $(`choice-${i}`).closest("tr").classList.toggle("right", i === file?.answer);
  });
  state.facts.forEach(({ text, on, gold }, n) => {
    const reads = mine && on && text.trim() && runs[run].model.config.inject !== "none";
    const unread = reads && !mine[shown].facts.some((kept) => kept.n === n);
    const kind = gold && (gold === text ? "gold" : "edited");
    $(`note-${n}`).textContent = unread ? "not read" : kind;
    $(`note-${n}`).title = unread ? "other facts are nearer, or it belongs to another choice" : "";
  });
  $("undo").disabled = !history.length;
  $("note").replaceChildren(...notes(now).map((line) => el("p", {}, line)));
  versions(file);
  picture(mine?.[shown], before[run]?.[shown]);
};

const bar = (r, i, now, before) => {
  const share = now ? now[i].probability : 0, was = before ? before[i].probability : share;
  const moved = percent(was) !== percent(share), cell = $(`bar-${r}-${i}`);
  const past = el("small", {}, moved ? `was ${percent(was)}` : "");
  cell.replaceChildren(now ? percent(share) : "too long", past);
  cell.style.cssText = `--now: ${percent(share)}; --then: ${percent(was)}`;
  cell.classList.toggle("moved", moved);
  cell.classList.toggle("best", Boolean(now) && i === best(now));
};

const notes = (now) => {
  const lines = runs.filter((_, r) => !now[r]).map(({ name, model }) =>
    `${name}: the text is too long, ${model.config.max_tokens} tokens can be read`);
  const { context, question, choices, facts } = state, { parts, unknown } = runs[run].tokenizer;
  const texts = [context, question, ...choices, ...facts.map(({ text }) => text)];
  const words = [...new Set(texts.flatMap(parts).filter(unknown))];
  const told = `unknown words, read as [UNK], one like the other: ${words.join(", ")}`;
  return words.length ? [...lines, told] : lines;
};

// The question as the file has it, without its gold fact, and with that fact edited.
const versions = (current) => {
  $("versions").replaceChildren(...DATA.questions[state.number].versions.map((one, n) => {
    const answers = answer(runs[run], one), taken = answers && best(answers);
    const says = answers ? `${one.choices[taken]} ${percent(answers[taken].probability)}` : "";
    const mark = taken === one.answer ? " ✓" : " ✗";
    const take = () => change(null, () => Object.assign(state, copy(one)));
    const pressed = { "aria-pressed": String(one === current), id: `version-${n}` };
    const texts = [one.name, one.fact, says + mark].map((text) => el("span", {}, text));
    return button(texts, `${one.name}: ${says}`, take, pressed);
  }));
};

// ------------------------------------------------------------------------------------- the picture

const HEADS = {
  concat: "The facts stand behind the input, as words. The model reads:",
  attention: "Layer LAYER: the share of its attention that each token gives each fact",
  ffn: "Layer LAYER: gelu(x Kᵀ), how strongly each fact fires at each token",
};

const picture = (seen, before) => {
  if (!seen) return $("picture").replaceChildren();
  const head = HEADS[runs[run].model.config.inject];
  if (!seen.layers.length) {
    const tokens = seen.tokens.map((token) => el("span", {}, token));
    const read = seen.facts.length ? head : "No fact is read. The model reads:";
    return $("picture").replaceChildren(el("h2", {}, read), el("p", { class: "read" }, tokens));
  }
  const picked = seen.layers.find(({ layer }) => layer === cell?.layer) ?? seen.layers[0];
  const there = cell && cell.t < seen.tokens.length && cell.n < seen.facts.length;
  const { t, n } = there ? cell : strongest(picked);
  $("picture").replaceChildren(...seen.layers.map((layer) => {
    const old = before?.layers.find((other) => other.layer === layer.layer);
    return scores(seen, layer, head, old, layer === picked ? { t, n } : null);
  }), detail(seen, picked, t, n));
};

const strongest = ({ factScores }) => {
  const all = factScores.flatMap((row, t) => row.map((score, n) => ({ score, t, n })));
  return all.reduce((a, b) => b.score > a.score ? b : a);
};

// A table of facts against tokens; `old` is the same layer before the change.
const scores = (seen, { layer, factScores }, head, old, picked) => {
  const most = Math.max(...factScores.flat().map(Math.abs), 1e-9);
  const one = (t, n) => {
    const score = factScores[t][n], was = old?.factScores[t]?.[n] ?? score;
    const on = picked?.t === t && picked?.n === n;
    const style = `--share: ${Math.abs(score) / most}`;
    return el("td", { class: score < 0 ? "below" : "", style }, el("button", {
      type: "button", id: `cell-${layer}-${t}-${n}`, tabindex: on ? 0 : -1,
      "aria-pressed": String(on), title: two(was) === two(score) ? "" : `was ${two(was)}`,
      onclick: () => pick(layer, t, n), onkeydown: (event) => arrow(event, seen, layer, t, n),
    }, two(score)));
  };
  const heads = seen.tokens.map((token) => el("th", { scope: "col" }, token));
  return el("table", { class: "scores" },
    el("caption", {}, head.replace("LAYER", layer),
      el("span", { class: "scale" }, two(-most), el("i"), two(most))),
    el("thead", {}, el("tr", {}, el("td"), heads)),
    el("tbody", {}, seen.facts.map(({ text }, n) =>
      el("tr", {}, el("th", { scope: "row" }, text), seen.tokens.map((_, t) => one(t, n))))));
};

const pick = (layer, t, n) => {
  cell = { layer, t, n };
  show();
  $(`cell-${layer}-${t}-${n}`).focus();
};

const ARROWS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
const arrow = (event, seen, layer, t, n) => {
  if (!(event.key in ARROWS)) return;
  event.preventDefault();
  const [right, down] = ARROWS[event.key];
  const within = (x, count) => Math.min(count - 1, Math.max(0, x));
  pick(layer, within(t + right, seen.tokens.length), within(n + down, seen.facts.length));
};

// The equation of one fact at one token, with its numbers.
const detail = (seen, { layer, x, K, V, factScores, plain, shares }, t, n) => {
  const { inject, num_attention_heads: H, hidden_size: D } = runs[run].model.config;
  const score = factScores[t][n], product = x[t].map((value, i) => value * K[n][i]);
  const sum = dot(x[t], K[n]), own = plain && two(norm(plain[t]));
  const fires = (i) => shares ? shares[t][n][Math.floor(i * H / D)] : score;  // heads differ
  const adds = two(norm(V[n].map((value, i) => value * fires(i))));
  const lines = inject === "ffn" ? [
    ["x · K", two(sum), "the token's state times the fact's key, added up"],
    ["gelu(x · K)", two(score), "how strongly the fact fires"],
    ["gelu(x · K) V", adds, `the length of what it adds; the FFN itself gives ${own}`],
  ] : [
    ["q · K", two(sum / Math.sqrt(D / H) / H), "query times key over √(D/H), mean of the heads"],
    ["softmax", two(score), "the share of the attention that the fact gets"],
    ["softmax · V", adds, "the length of what it adds, before the output matrix"],
  ];
  const first = inject === "ffn" ? "x" : "q";
  const bands = [[first, x[t]], ["K", K[n]], ["product", product], ["V", V[n]]];
  const band = ([name, row]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {
    role: "img", style: strip(row),
    "aria-label": `${row.length} numbers from ${two(Math.min(...row))} to ${two(Math.max(...row))}`,
  }));
  return el("div", { id: "detail" },
    el("p", {}, `layer ${layer}, fact `, el("b", {}, seen.facts[n].text), " at the token ",
      el("b", {}, seen.tokens[t])),
    el("table", {}, lines.map(([name, value, words]) => el("tr", {},
      el("th", { scope: "row" }, name), el("td", {}, value), el("td", {}, words)))),
    el("table", { class: "strips" }, bands.map(band)));
};

// A row of numbers as a band of colours: red above 0, blue below.
const strip = (row) => {
  const most = Math.max(...row.map(Math.abs), 1e-9), width = 100 / row.length;
  const stops = Array.from(row, (value, i) => {
    const [sign, share] = [value < 0 ? "below" : "above", (Math.abs(value) / most).toFixed(2)];
    return `rgba(var(--${sign}), ${share}) ${i * width}% ${(i + 1) * width}%`;
  });
  return `background: linear-gradient(to right, ${stops.join(", ")})`;
};

// ------------------------------------------------------------------------------------------- start

DATA.questions.forEach(({ versions: [q] }, n) =>
  $("number").append(el("option", { value: n }, `${n + 1}  ${q.question}`)));
const turn = (by) => open((state.number + by + DATA.questions.length) % DATA.questions.length);
$("number").onchange = () => open(Number($("number").value));
$("previous").onclick = () => turn(-1);
$("next").onclick = () => turn(1);
$("undo").onclick = undo;
$("reset").onclick = () => open(state.number);
$("all").onclick = () => change(null, () => {
  const on = !state.facts.some((fact) => fact.on);
  state.facts.forEach((fact) => { fact.on = on; });
});
$("add").onclick = () => {
  change(null, () => state.facts.push({ text: "", on: true, of: null, gold: "" }));
  $("facts").lastChild.querySelector(".field input").focus();
};
Promise.all(DATA.runs.map(openRun)).then((opened) => {
  runs = opened;
  open(0);
});
