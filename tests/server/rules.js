// A few rules after those of axe: what can be told from the page alone. A function that gives what is wrong.
() => {
  const told = [];
  const seen = (e) => e.checkVisibility({ opacityProperty: true, visibilityProperty: true });
  const name = (e) => (e.getAttribute('aria-label') || e.innerText || [...(e.labels || [])].map(l => l.innerText).join(' ')).trim();
  for (const e of document.querySelectorAll('a[href], button, select, input:not([type=hidden]), summary, progress'))
    if (seen(e) && !name(e)) told.push('no name: ' + e.outerHTML.slice(0, 120));
  const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
  if (new Set(ids).size !== ids.length) told.push('an id twice: ' + ids.filter((id, i) => ids.indexOf(id) !== i));
  const levels = [...document.querySelectorAll('main :is(h1,h2,h3,h4)')].map(e => Number(e.tagName[1]));
  levels.forEach((level, i) => { if (level > (levels[i - 1] || 0) + 1) told.push('headings jump: ' + levels); });
  if (levels.filter(level => level === 1).length !== 1) told.push('not one h1: ' + levels);
  if (!document.documentElement.lang || !document.title || !document.querySelector('main')) told.push('frame');
  const light = (c) => { const v = c.map(x => x / 255).map(x => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
    return .2126 * v[0] + .7152 * v[1] + .0722 * v[2]; };
  const rgb = (s) => (s.match(/[\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const ground = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] === 1) return c.slice(0, 3); } return [255, 255, 255]; };
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (!own || !seen(e) || e.closest('svg, option, .hide, .skip')) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color).slice(0, 3)), light(ground(e))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) told.push(`contrast ${ratio.toFixed(2)}: ${e.outerHTML.slice(0, 100)}`);
  }
  if (document.documentElement.scrollWidth > innerWidth) told.push('wider than the window');
  return told;
}
