// Answers are stored as they are given, one request at a time and in order, so
// that the last one given is the last one stored. Without scripts the form
// works as any form does.

const form = document.getElementById('answer');
const explanation = document.getElementById('explanation');
const status = document.getElementById('status');
const KEYS = {y: 'yes', m: 'maybe', n: 'no'};
let last = Promise.resolve();
let stored = String(read());

function read() {
  return new URLSearchParams(new FormData(form));
}

function say(text, isBad) {
  status.textContent = text;
  status.classList.toggle('bad', Boolean(isBad));
}

async function send(body) {
  let problem = 'the server does not answer';
  try {
    const answer = await fetch(form.action, {
      method: 'POST',
      body,
      headers: {Accept: 'application/json'},
      keepalive: true, // goes through when the page is left
    });
    const found = await answer.json();
    if (answer.ok) {
      document.getElementById('progress').value = found.answered;
      document.getElementById('answered').textContent = found.answered;
      stored = String(body);
      say('Saved.');
      return found.next;
    }
    problem = found.error;
  } catch {
    // `problem` says it.
  }
  say(`Not saved: ${problem}. Your answer is still here; try again.`, true);
  return null;
}

function save() {
  const body = read();
  say('Saving…');
  last = last.then(() => send(body));
  return last;
}

form.addEventListener('change', () => {
  if (form.elements.rating.value) save();
});

form.addEventListener('submit', async (event) => {
  event.preventDefault();
  const next = await save();
  if (next) location.assign(next);
});

// A line that was typed and not left. At once: what waits is not sent any more.
window.addEventListener('pagehide', () => {
  if (form.elements.rating.value && String(read()) !== stored) send(read());
});

document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) {
    return;
  }
  if (event.target === explanation) {
    if (event.key === 'Escape') explanation.blur();
    return;
  }
  const rating = KEYS[event.key.toLowerCase()];
  if (rating) {
    event.preventDefault(); // or the letter lands in the line
    form.elements.rating.value = rating;
    save();
    explanation.focus();
  } else if (event.target.type !== 'radio') {
    const turns = {ArrowLeft: 'previous', ArrowRight: 'following'};
    document.getElementById(turns[event.key])?.click();
  }
});
