// What all pages share. No network: data are scripts, so that pages also open
// from disk, where a browser fetches nothing.
'use strict';

const jr = (() => {
  const wanted = new Map();

  function want(name) {
    if (!wanted.has(name)) {
      const one = {};
      one.promise = new Promise((resolve, reject) => {
        one.resolve = resolve;
        one.reject = reject;
      });
      wanted.set(name, one);
    }
    return wanted.get(name);
  }

  // Called by the files in data/.
  function give(name, value) {
    want(name).resolve(value);
  }

  // Returns a promise of what data/NAME.js gives.
  function load(name) {
    const isNew = !wanted.has(name);
    const one = want(name);
    if (isNew) {
      const script = document.createElement('script');
      script.src = `data/${name}.js`;
      script.onerror = () => {
        wanted.delete(name);
        one.reject(new Error(`data/${name}.js is not there`));
      };
      document.head.append(script);
    }
    return one.promise;
  }

  // Numbers as base64 of little-endian arrays; every browser's are such.
  function numbers(kind, text) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return new kind(bytes.buffer);
  }

  function format(value) {
    if (!Number.isFinite(value)) return '–';
    if (value === 0) return '0';
    const size = Math.abs(value);
    if (size >= 1e5 || size < 1e-3) return value.toExponential(1);
    return String(Number(value.toPrecision(3)));
  }

  function percent(share) {
    return `${format(100 * share)}%`;
  }

  // A token with what would not be seen in it.
  function visible(text) {
    const shown = text.replace(/\n/g, '↵').replace(/\t/g, '⇥').replace(/\r/g, '␍');
    return shown.trim() === '' ? shown.replace(/ /g, '␣') || '∅' : shown;
  }

  function element(name, properties = {}, ...children) {
    const made = document.createElement(name);
    Object.assign(made, properties);
    made.append(...children);
    return made;
  }

  function chip(text) {
    return element('span', {className: 'token'}, visible(text));
  }

  function link(latent) {
    return element('a', {href: `latent.html#${latent}`}, String(latent));
  }

  function drawn(name, attributes, ...children) {
    const made = document.createElementNS('http://www.w3.org/2000/svg', name);
    for (const [key, value] of Object.entries(attributes)) {
      made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  }

  // Bars of equal width with words under some of their edges.
  //   counts   of the bars
  //   titles   of each
  //   ticks    [[edge's index, text], …]
  function bars(counts, titles, ticks, label) {
    const width = 480, height = 120, base = height - 18;
    const most = Math.max(1, ...counts);
    const step = (width - 20) / counts.length;
    const svg = drawn('svg', {
      viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': label,
    });
    counts.forEach((count, i) => {
      const size = count ? Math.max(1.5, (count / most) * (base - 6)) : 0;
      const title = drawn('title', {}, titles[i]);
      svg.append(drawn('rect', {
        x: 10 + i * step, y: base - size, width: Math.max(0.5, step - 1), height: size,
      }, title));
    });
    svg.append(drawn('line', {x1: 10, x2: width - 10, y1: base, y2: base}));
    ticks.forEach(([edge, text]) => {
      const anchor = edge === 0 ? 'start' : edge === counts.length ? 'end' : 'middle';
      svg.append(drawn('text', {
        x: 10 + edge * step, y: height - 4, 'text-anchor': anchor,
      }, text));
    });
    return svg;
  }

  // Browsers may refuse storage to pages from disk.
  function kept() {
    try {
      return localStorage.getItem('theme');
    } catch {
      return null;
    }
  }

  function keep(theme) {
    try {
      localStorage.setItem('theme', theme);
    } catch {
      // The choice is then for this page alone.
    }
  }

  const root = document.documentElement;
  if (kept()) root.dataset.theme = kept();

  function toggle() {
    const system = matchMedia('(prefers-color-scheme: dark)').matches;
    const isDark = root.dataset.theme ? root.dataset.theme === 'dark' : system;
    root.dataset.theme = isDark ? 'light' : 'dark';
    keep(root.dataset.theme);
  }

  // True where a key is part of what somebody writes.
  function isTyping(event) {
    return event.ctrlKey || event.metaKey || event.altKey ||
      event.target.closest('input, select, textarea') !== null;
  }

  document.addEventListener('DOMContentLoaded', () => {
    document.getElementById('theme').addEventListener('click', toggle);
    const go = document.getElementById('go');
    go.addEventListener('submit', (event) => {
      event.preventDefault();
      const latent = go.elements.latent.value.trim();
      if (/^[0-9]+$/.test(latent)) {
        location.href = `latent.html#${Number(latent)}`;
        go.elements.latent.blur();
      }
    });
  });

  return {
    bars, chip, element, format, give, isTyping, link, load, numbers, percent, visible,
  };
})();
