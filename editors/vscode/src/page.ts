// Renders facts and advice as a page.

import STYLE from '../media/page.css';

export type Remedy = readonly [words: string, command: string];
/** A mark (✓, ✗ or nothing), a name, a value, and a command of this extension as a remedy. */
export type Row = readonly [mark: string, name: string, value: string, remedy?: Remedy | undefined];
export type Part = Readonly<{ title: string; rows?: readonly Row[]; text?: string }>;

const POLICY = `default-src 'none'; img-src data:; style-src 'unsafe-inline'`;
const HEAD = `<meta http-equiv="Content-Security-Policy" content="${POLICY}"><style>${STYLE}</style>`;

export function page(title: string, parts: readonly Part[]): string {
  return `<!doctype html><meta charset="utf-8">${HEAD}<h1>${escaped(title)}</h1>${parts.map(section).join('')}`;
}

/** A page of the program with our style sheet after its own. It has no scripts. */
export function recoloured(html: string): string {
  const bare = html.replace(/<meta http-equiv="Content-Security-Policy"[^>]*>/, '');
  return bare.includes('</head>') ? bare.replace('</head>', `${HEAD}</head>`) : HEAD + bare;
}

/** A server's answer as rows: names as words, without empty values. */
export function factRows(said: object): Row[] {
  const rows = Object.entries(said).map(([name, value]): Row => ['', name.replace(/[A-Z]/g, ' $&').toLowerCase(), plain(value)]);
  return rows.filter(([, , value]) => value);
}

function plain(value: unknown): string {
  if (Array.isArray(value)) return value.map(plain).join('; ');
  if (typeof value !== 'object' || value === null) return typeof value === 'string' ? value : JSON.stringify(value);
  return Object.entries(value).map(([name, inner]) => `${name}: ${plain(inner)}`).join(', ');
}

function section({ title, rows = [], text = '' }: Part): string {
  return `<h2>${escaped(title)}</h2><table class="facts">${rows.map(line).join('')}</table><pre>${escaped(text)}</pre>`;
}

function line([mark, name, value, remedy]: Row): string {
  const link = remedy ? `<br><a href="command:fimserver.${remedy[1]}">${escaped(remedy[0])}</a>` : '';
  return `<tr><td>${mark}</td><td>${escaped(name)}</td><td>${escaped(value)}${link}</td></tr>`;
}

function escaped(text: string): string {
  return text.replace(/[&<>"']/g, (char) => `&#${String(char.charCodeAt(0))};`);
}
