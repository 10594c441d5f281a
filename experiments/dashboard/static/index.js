// The index: sorts, filters and searches all latents, draws a page of them.
'use strict';

(async () => {
  const ROWS = 100;
  const BINS_PER_DECADE = 4;
  const found = await jr.load('columns');
  const count = jr.numbers(Float64Array, found.count);
  const columns = {
    latent: Uint32Array.from(count, (_, i) => i),
    frequency: Float64Array.from(count, (n) => n / found.positions),
    max: jr.numbers(Float32Array, found.max),
    mean: jr.numbers(Float32Array, found.mean),
  };
  const tokens = {
    fires: jr.numbers(Uint32Array, found.fires),
    promotes: jr.numbers(Uint32Array, found.promotes),
  };
  const filters = document.getElementById('filters');
  const body = document.querySelector('#latents tbody');
  const view = {sort: 'frequency', down: true, page: 0};
  let shown = columns.latent;
  let asked = 0;

  // Latents that have a token with each of some beginnings; null is all.
  async function search(text, where) {
    const terms = text.toLowerCase().split(/\s+/).filter(Boolean);
    if (!terms.length) return null;
    let result = null;
    for (const term of terms) {
      const letters = Array.from(term).slice(0, 2);
      const name = letters.map((c) => c.codePointAt(0).toString(16)).join('_');
      const latents = new Set();
      if (found.search.includes(name)) {
        const entries = await jr.load(`search/${name}`);
        for (const [token, lists] of Object.entries(entries)) {
          if (token.startsWith(term)) lists[where].forEach((i) => latents.add(i));
        }
      }
      result = result === null ? latents : new Set([...result].filter((i) => latents.has(i)));
    }
    return result;
  }

  function bound(name, otherwise) {
    const value = Number.parseFloat(filters.elements[name].value.replace(',', '.'));
    return Number.isFinite(value) ? value / 100 : otherwise;
  }

  async function filter() {
    const mine = ++asked;
    const token = filters.elements.token.value;
    const wanted = await search(token, filters.elements.where.value);
    if (mine !== asked) return;  // somebody typed on
    const low = bound('low', 0), high = bound('high', 1);
    const silent = filters.elements.silent.checked;
    shown = columns.latent.filter((i) => {
      const frequency = columns.frequency[i];
      return (silent || count[i] > 0) && frequency >= low && frequency <= high &&
        (wanted === null || wanted.has(i));
    });
    sort();
  }

  function sort() {
    const values = columns[view.sort];
    // NaN, of latents that never fire, comes last either way.
    const key = view.down ? (i) => values[i] : (i) => -values[i];
    const keys = Float64Array.from(columns.latent, (i) => Number.isNaN(values[i]) ? -Infinity : key(i));
    shown.sort((a, b) => keys[b] - keys[a] || a - b);
    view.page = 0;
    draw();
  }

  function chips(where, latent) {
    const width = found.listed, start = latent * width;
    const ids = [...tokens[where].subarray(start, start + width)];
    return ids.filter((id) => id > 0).map((id) => jr.chip(found.texts[id - 1]));
  }

  function cell(name, ...children) {
    const made = jr.element('td', {}, ...children);
    made.dataset.name = name;
    return made;
  }

  function row(latent) {
    return jr.element('tr', {},
      cell('latent', jr.link(latent)),
      cell('frequency', jr.percent(columns.frequency[latent])),
      cell('largest', jr.format(columns.max[latent])),
      cell('mean', jr.format(columns.mean[latent])),
      cell('fires on', ...chips('fires', latent)),
      cell('promotes', ...chips('promotes', latent)));
  }

  function draw() {
    const pages = Math.max(1, Math.ceil(shown.length / ROWS));
    view.page = Math.min(Math.max(view.page, 0), pages - 1);
    const first = view.page * ROWS;
    body.replaceChildren(...Array.from(shown.subarray(first, first + ROWS), row));
    document.getElementById('found').textContent =
      `${shown.length.toLocaleString('en')} of ${count.length.toLocaleString('en')} latents`;
    document.getElementById('page').textContent = `page ${view.page + 1} of ${pages.toLocaleString('en')}`;
    document.getElementById('previous').disabled = view.page === 0;
    document.getElementById('next').disabled = view.page === pages - 1;
    for (const button of document.querySelectorAll('[data-sort]')) {
      const head = button.closest('th');
      if (button.dataset.sort === view.sort) {
        head.setAttribute('aria-sort', view.down ? 'descending' : 'ascending');
      } else {
        head.removeAttribute('aria-sort');
      }
    }
    remember();
  }

  // What is shown is in the address, so that going back shows it again.
  function remember() {
    const state = new URLSearchParams();
    for (const name of ['token', 'where', 'low', 'high']) {
      if (filters.elements[name].value) state.set(name, filters.elements[name].value);
    }
    if (filters.elements.silent.checked) state.set('silent', '1');
    state.set('sort', view.sort);
    state.set('down', view.down ? '1' : '0');
    state.set('page', view.page + 1);
    try {
      history.replaceState(null, '', `#${state}`);
    } catch {
      // Some browsers refuse this to pages from disk, or when it is too often.
    }
  }

  function recall() {
    const state = new URLSearchParams(location.hash.slice(1));
    for (const name of ['token', 'where', 'low', 'high']) {
      if (state.has(name)) filters.elements[name].value = state.get(name);
    }
    filters.elements.silent.checked = state.has('silent');
    if (state.get('sort') in columns) view.sort = state.get('sort');
    view.down = state.get('down') !== '0';
    return Number(state.get('page') || 1) - 1;
  }

  function turn(pages) {
    view.page += pages;
    draw();
    document.getElementById('found').scrollIntoView();
  }

  function drawFrequencies() {
    const firing = columns.latent.filter((i) => count[i] > 0);
    const place = (i) => Math.log10(columns.frequency[i]) * BINS_PER_DECADE;
    const lowest = Math.floor(firing.reduce((low, i) => Math.min(low, place(i)), 0) / BINS_PER_DECADE);
    const bins = new Array(Math.max(1, -lowest) * BINS_PER_DECADE).fill(0);
    for (const i of firing) {
      bins[Math.min(bins.length - 1, Math.floor(place(i) - lowest * BINS_PER_DECADE))] += 1;
    }
    const edge = (i) => jr.percent(10 ** (lowest + i / BINS_PER_DECADE));
    const titles = bins.map((n, i) => `${n} latents fire at ${edge(i)} to ${edge(i + 1)} of positions`);
    const ticks = [];
    const decades = Math.ceil(-lowest / 5);  // from one tick to the next
    for (let i = bins.length; i >= 0; i -= decades * BINS_PER_DECADE) ticks.unshift([i, edge(i)]);
    document.getElementById('frequencies').prepend(
      jr.bars(bins, titles, ticks, 'histogram of latents by frequency'));
  }

  let pause = 0;
  filters.addEventListener('input', () => {
    clearTimeout(pause);
    pause = setTimeout(filter, 120);
  });
  filters.addEventListener('submit', (event) => event.preventDefault());
  for (const button of document.querySelectorAll('[data-sort]')) {
    button.addEventListener('click', () => {
      view.down = view.sort === button.dataset.sort ? !view.down : button.dataset.sort !== 'latent';
      view.sort = button.dataset.sort;
      sort();
    });
  }
  document.getElementById('previous').addEventListener('click', () => turn(-1));
  document.getElementById('next').addEventListener('click', () => turn(1));
  document.addEventListener('keydown', (event) => {
    if (jr.isTyping(event)) return;
    if (event.key === '/') {
      event.preventDefault();
      filters.elements.token.focus();
    }
    if (event.key === 'j' || event.key === 'ArrowRight') turn(1);
    if (event.key === 'k' || event.key === 'ArrowLeft') turn(-1);
  });

  drawFrequencies();
  const page = recall();
  await filter();
  view.page = page;
  draw();
  document.body.dataset.ready = 'yes';
})();
