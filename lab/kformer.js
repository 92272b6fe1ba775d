// The forward pass of kformer.py in plain JavaScript: its names, its order, its shapes.
//
// A matrix is a list of rows, and a row is a Float32Array. There is one choice at a time, so there
// is no batch and no padding, and with them go all masks. Dropout is for training. What the page
// shows of a layer is kept in `seen`.

const dot = (a, b) => {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
};
const add = (a, b) => a.map((value, i) => value + b[i]);
const times = (a, number) => a.map((value) => value * number);
const mean = (rows) => times(rows.reduce(add), 1 / rows.length);
const norm = (a) => Math.sqrt(dot(a, a));

// sum of weights[n] * rows[n]: a row of the product of two matrices
const mix = (weights, rows) => {
  const sum = new Float32Array(rows[0].length);
  rows.forEach((row, n) => row.forEach((value, i) => { sum[i] += weights[n] * value; }));
  return sum;
};

const softmax = (a) => {
  const most = Math.max(...a), exp = a.map((value) => Math.exp(value - most));
  const total = exp.reduce((x, y) => x + y);
  return exp.map((value) => value / total);
};

// x (1 + erf(x / sqrt 2)) / 2, with erf as Abramowitz and Stegun have it (7.1.26, exact to 2e-7)
const gelu = (x) => {
  const z = Math.abs(x) / Math.SQRT2, t = 1 / (1 + 0.3275911 * z);
  const series = [1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592];
  const erf = 1 - series.reduce((sum, c) => (sum + c) * t, 0) * Math.exp(-z * z);
  return x * (1 + Math.sign(x) * erf) / 2;
};

const linear = ({ weight, bias }, x) =>  // (T, D) -> (T, D')
  x.map((row) => Float32Array.from(weight, (keys, i) => dot(row, keys) + bias[i]));

const layerNorm = ({ weight, bias }, x, eps) => x.map((row) => {
  const middle = row.reduce((a, b) => a + b) / row.length;
  const centred = row.map((value) => value - middle);
  const deviation = Math.sqrt(dot(centred, centred) / row.length + eps);
  return centred.map((value, i) => value / deviation * weight[i] + bias[i]);
});

// ---------------------------------------------------------------------------------- embeddings

const embeddings = ({ embeddings, config }, inputIds, tokenTypeIds) => {  // (T,) -> (T, D)
  const x = inputIds.map((id, t) => add(
    add(embeddings.word_embeddings.weight[id],
      embeddings.token_type_embeddings.weight[tokenTypeIds[t]]),
    embeddings.position_embeddings.weight[t]));
  return layerNorm(embeddings.norm, x, config.layer_norm_eps);
};

// --------------------------------------------------------------------------------------- facts

const meanEmbedding = (table, ids) => mean(ids.map((id) => table.weight[id]));

// The places of the num_facts of S candidates that are nearest to the text, in their old order.
const nearestFacts = (factIds, table, text, { num_facts }) => {
  const relevance = factIds.map((ids) => dot(meanEmbedding(table, ids), text));
  const places = [...factIds.keys()].sort((a, b) => relevance[b] - relevance[a] || a - b);
  return places.slice(0, num_facts).sort((a, b) => a - b);
};

const appendFacts = (inputIds, tokenTypeIds, factIds, config) => {  // concat
  const words = factIds.flat();
  if (words.length) words.push(config.sep_token_id);
  const segment = Math.min(2, config.type_vocab_size - 1);
  return [[...inputIds, ...words], [...tokenTypeIds, ...words.map(() => segment)]];
};

// ----------------------------------------------------------------------------------- attention

const selfAttention = (attention, x, knowledge, config, seen) => {  // (T, D) -> (T, D)
  const q = linear(attention.query, x);
  let k = linear(attention.key, x), v = linear(attention.value, x);
  const { K, V } = knowledge ?? { K: [], V: [] };
  [k, v] = [[...K, ...k], [...V, ...v]];  // as if N more tokens stood first
  const H = config.num_attention_heads, size = config.hidden_size / H;
  const out = x.map(() => []), shares = x.map(() => K.map(() => []));  // (T, N, H)
  for (let h = 0; h < H; h++) {
    const head = (rows) => rows.map((row) => row.subarray(h * size, (h + 1) * size));
    const [qh, kh, vh] = [q, k, v].map(head);
    qh.forEach((query, t) => {
      const probs = softmax(kh.map((key) => dot(query, key) / Math.sqrt(size)));
      out[t].push(...mix(probs, vh));
      K.forEach((_, n) => shares[t][n].push(probs[n]));
    });
  }
  const factScores = shares.map((facts) => facts.map((heads) => heads.reduce((a, b) => a + b) / H));
  if (knowledge) Object.assign(seen, { x: q, K, V, factScores, shares });
  return linear(attention.output, out.map((row) => Float32Array.from(row)));
};

// ----------------------------------------------------------------------------------------- FFN

const ffn = ({ W1, W2 }, x, knowledge, seen) => {  // (T, D) -> (T, D)
  const fired = linear(W1, x).map((row) => row.map(gelu));  // (T, M)
  const plain = linear(W2, fired);
  if (!knowledge) return plain;
  const { K, V } = knowledge;
  const factScores = x.map((row) => K.map((key) => gelu(dot(row, key))));  // (T, N)
  Object.assign(seen, { x, K, V, factScores, plain });
  return plain.map((row, t) => add(row, mix(factScores[t], V)));
};

// --------------------------------------------------------------------------------------- block

const block = (layer, x, F, config, seen) => {
  let knowledge = null;
  if (layer.Wk && F.length) knowledge = { K: linear(layer.Wk, F), V: linear(layer.Wv, F) };
  const forAttention = config.inject === "attention" ? knowledge : null;
  const forFfn = config.inject === "ffn" ? knowledge : null;
  const attended = selfAttention(layer.attention, x, forAttention, config, seen);
  x = layerNorm(layer.attention_norm, x.map((row, t) => add(row, attended[t])),
    config.layer_norm_eps);
  const remembered = ffn(layer.ffn, x, forFfn, seen);
  return layerNorm(layer.ffn_norm, x.map((row, t) => add(row, remembered[t])),
    config.layer_norm_eps);
};

// ----------------------------------------------------------------------- the model and its head

// Ids of one choice and of its candidate facts -> its score, the input as it was read, the places
// of the facts that were kept, and for each injected layer what they did.
const kformer = (model, inputIds, tokenTypeIds, factIds) => {
  const { config } = model, words = model.embeddings.word_embeddings;
  const table = config.inject === "concat" ? words : model.fact_embeddings;
  let keptPlaces = [], F = [];
  if (config.inject !== "none") {
    keptPlaces = nearestFacts(factIds, table, meanEmbedding(words, inputIds), config);
    const kept = keptPlaces.map((n) => factIds[n]);
    if (config.inject === "concat") {
      [inputIds, tokenTypeIds] = appendFacts(inputIds, tokenTypeIds, kept, config);
    } else {
      F = kept.map((ids) => meanEmbedding(table, ids));
    }
  }
  if (inputIds.length > config.max_tokens) return null;  // kformer.py leaves out words; we don't
  let x = embeddings(model, inputIds, tokenTypeIds);
  const layers = [];
  model.encoder.layer.forEach((layer, i) => {
    const seen = {};
    x = block(layer, x, F, config, seen);
    if (seen.factScores) layers.push({ layer: i, ...seen });
  });
  const pooled = linear(model.pooler, [x[0]]).map((row) => row.map(Math.tanh));
  return { score: linear(model.classifier, pooled)[0][0], inputIds, keptPlaces, layers };
};
