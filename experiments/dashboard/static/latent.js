// One latent: latent.html#123.
'use strict';

(async () => {
  const found = await jr.load('columns');
  const count = jr.numbers(Float64Array, found.count);
  const max = jr.numbers(Float32Array, found.max);
  const mean = jr.numbers(Float32Array, found.mean);
  const byId = (id) => document.getElementById(id);
  const tip = byId('tip');

  function current() {
    return /^#[0-9]+$/.test(location.hash) ? Number(location.hash.slice(1)) : 0;
  }

  function drawFacts(latent) {
    const facts = {
      firings: count[latent].toLocaleString('en'),
      frequency: jr.percent(count[latent] / found.positions),
      largest: jr.format(max[latent]),
      mean: jr.format(mean[latent]),
    };
    byId('facts').replaceChildren(...Object.entries(facts).map(([name, value]) =>
      jr.element('div', {},
        jr.element('dt', {}, name), jr.element('dd', {}, value))));
  }

  // Rows of two cells; a bar behind the second shows its share of the largest.
  function drawPairs(id, pairs, first) {
    const most = Math.max(...pairs.map(([, value]) => Math.abs(value)));
    const rows = pairs.map(([key, value]) => {
      const cell = jr.element('td', {className: 'bar'},
        Number.isInteger(value) ? value.toLocaleString('en') : jr.format(value));
      cell.style.setProperty('--share', `${(100 * Math.abs(value)) / most}%`);
      return jr.element('tr', {}, jr.element('td', {}, first(key)), cell);
    });
    const none = jr.element('tr', {},
      jr.element('td', {className: 'none'}, 'none'));
    byId(id).replaceChildren(...(rows.length ? rows : [none]));
  }

  function drawHistogram(counts) {
    const edges = found.edges;
    const used = counts.flatMap((n, i) => (n ? [i] : []));
    const figure = byId('histogram');
    if (!used.length) {
      figure.replaceChildren(jr.element('figcaption', {}, 'It never fires.'));
      return;
    }
    // With an empty bin on either side.
    const first = Math.max(0, used[0] - 1);
    const stop = Math.min(counts.length, used[used.length - 1] + 2);
    const titles = counts.map((n, i) =>
      `${n.toLocaleString('en')} firings from ${jr.format(edges[i])} to ${jr.format(edges[i + 1])}`);
    const bins = stop - first;
    const ticks = [0, Math.round(bins / 3), Math.round((2 * bins) / 3), bins]
      .filter((edge, i, all) => all.indexOf(edge) === i)
      .map((edge) => [edge, jr.format(edges[first + edge])]);
    figure.replaceChildren(
      jr.bars(counts.slice(first, stop), titles.slice(first, stop), ticks,
        'histogram of activations, log scale'),
      jr.element('figcaption', {}, 'Firings by activation (log scale)'));
  }

  // A token is shaded by its activation's share of the latent's largest; values
  // are those of the tokens that a character consists of, mostly one.
  function word(text, values, largest, isDrawn) {
    const value = Math.max(...values);
    const made = jr.element('span', {});
    for (const part of text.split(/(\n|\t|\r)/)) {
      const isSign = part !== '' && '\n\t\r'.includes(part);
      made.append(isSign ? jr.element('span', {className: 'sign'}, jr.visible(part)) : part);
    }
    if (value > 0) {
      const share = Math.min(1, value / largest);
      made.classList.add('on');
      if (share < 0.1) made.classList.add('weak');
      made.style.setProperty('--strength', (0.18 + 0.77 * share).toFixed(3));
      made.dataset.value = values.map(jr.format).join(' · ');
    }
    // Of text that turns the direction of writing, as U+202E, no other is turned.
    if (/[\u202a-\u202e\u2066-\u2069]/.test(text)) made.classList.add('turns');
    made.dataset.text = text;
    if (isDrawn) made.classList.add('drawn');
    return made;
  }

  function example(one, texts, largest) {
    const values = new Map();
    for (let i = 0; i < one.on.length; i += 2) values.set(one.on[i], one.on[i + 1]);
    const words = [];
    let first = 0;
    one.tokens.forEach((token, i) => {
      // The tokens before the one that completes a character have no text.
      if (texts[token] === '' && i + 1 < one.tokens.length) return;
      const ours = one.tokens.slice(first, i + 1).map((_, k) => values.get(first + k) || 0);
      words.push(word(texts[token], ours, largest, first <= one.at && one.at <= i));
      first = i + 1;
    });
    const value = jr.element('span', {className: 'value'}, jr.format(values.get(one.at)));
    value.title = `sequence ${one.sequence}, position ${one.position}`;
    return jr.element('div', {className: 'example'}, value,
      jr.element('p', {className: 'words'}, ...words));
  }

  function heading(stratum) {
    if (stratum === 0) return 'Largest activations, one of a sequence';
    const share = (i) => Math.round((100 * i) / found.strata);
    return `Drawn at random: ${share(stratum - 1)}% to ${share(stratum)}% of its firings by activation`;
  }

  function drawExamples(latent, examples, texts) {
    const sections = [];
    for (const stratum of [0, ...Array.from({length: found.strata}, (_, i) => found.strata - i)]) {
      const mine = examples.filter((one) => one.stratum === stratum);
      if (!mine.length) continue;
      const section = jr.element('section', {}, jr.element('h2', {}, heading(stratum)),
        ...mine.map((one) => example(one, texts, max[latent])));
      section.dataset.stratum = stratum;
      sections.push(section);
    }
    byId('examples').replaceChildren(...sections);
  }

  function drawNavigation(latent) {
    byId('name').textContent = `latent ${latent}`;
    document.title = `latent ${latent} · ${found.name}`;
    for (const [id, other] of [['previous', latent - 1], ['next', latent + 1]]) {
      const isThere = other >= 0 && other < count.length;
      if (isThere) byId(id).href = `#${other}`;
      else byId(id).removeAttribute('href');
    }
  }

  function say(problem) {
    byId('problem').textContent = problem;
    byId('problem').hidden = !problem;
    document.querySelector('.columns').hidden = Boolean(problem);
    document.querySelector('.legend').hidden = Boolean(problem);
    if (problem) byId('examples').replaceChildren();
    if (problem) byId('facts').replaceChildren();
  }

  async function draw() {
    const latent = current();
    delete document.body.dataset.ready;
    tip.hidden = true;
    drawNavigation(latent);
    try {
      if (latent >= count.length) {
        throw new Error(`there is no latent ${latent}; they are 0 to ${count.length - 1}`);
      }
      const chunk = await jr.load(`latents/${Math.floor(latent / found.chunk)}`);
      if (latent !== current()) return;  // somebody went on
      const one = chunk.latents[latent % found.chunk];
      const chip = (token) => jr.chip(chunk.texts[token]);
      say('');
      drawFacts(latent);
      drawHistogram(one.histogram);
      drawPairs('tokens', one.tokens, chip);
      drawPairs('promoted', one.promoted, chip);
      drawPairs('suppressed', one.suppressed, chip);
      drawPairs('similar', one.similar, jr.link);
      drawPairs('together', one.together, jr.link);
      drawExamples(latent, one.examples, chunk.texts);
    } catch (error) {
      say(`Latent ${latent} cannot be shown: ${error.message}.`);
    }
    document.body.dataset.ready = String(latent);
  }

  function point(event) {
    const target = event.target.closest('.words > span');
    if (!target) {
      tip.hidden = true;
      return;
    }
    tip.textContent = `${jr.visible(target.dataset.text)}  ${target.dataset.value || '0'}`;
    tip.hidden = false;
    const box = target.getBoundingClientRect();
    const left = Math.min(box.left, innerWidth - tip.offsetWidth - 8);
    const above = box.top - tip.offsetHeight - 4;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${above > 0 ? above : box.bottom + 4}px`;
  }

  byId('examples').addEventListener('mouseover', point);
  byId('examples').addEventListener('click', point);
  byId('examples').addEventListener('mouseleave', () => { tip.hidden = true; });
  addEventListener('scroll', () => { tip.hidden = true; }, {passive: true});
  document.addEventListener('keydown', (event) => {
    if (jr.isTyping(event)) return;
    const steps = {j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1};
    const other = current() + (steps[event.key] || 0);
    if (event.key in steps && other >= 0 && other < count.length) location.hash = other;
  });
  addEventListener('hashchange', () => {
    scrollTo(0, 0);
    draw();
  });
  await draw();
})();
