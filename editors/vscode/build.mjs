// Bundles the extension into dist/extension.js; with `tests`, the tests into dist/test.
import { build } from 'esbuild';
import { readdirSync } from 'node:fs';

const common = { bundle: true, platform: 'node', target: 'node20', format: 'cjs', loader: { '.css': 'text' }, logLevel: 'warning' };
if (process.argv.includes('tests')) {
  const entryPoints = readdirSync('test').filter((name) => name.endsWith('.test.ts')).map((name) => `test/${name}`);
  await build({ ...common, entryPoints, outdir: 'dist/test', alias: { vscode: './test/vscode.ts' } });
} else {
  await build({ ...common, entryPoints: ['src/extension.ts'], outfile: 'dist/extension.js', external: ['vscode'], minify: true, mainFields: ['module', 'main'] });
}
