// Compares the dashboards with the types that Grafana publishes of its own JSON (@grafana/schema, pinned to the
// version in compose.yaml): a key that is misspelt, missing, or of the wrong kind is an error. Grafana itself ignores
// such keys, and shows a panel that is not what was meant.
//
//   npm ci --prefix deploy/grafana/schema && node deploy/grafana/schema/check.mjs
//
// Each part of a dashboard becomes a constant of its type, and the TypeScript compiler says what does not fit.

import { readFileSync, readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';

const here = dirname(fileURLToPath(import.meta.url));
const dashboards = join(here, '..', 'dashboards');
const types = './node_modules/@grafana/schema/dist/types';

/** Panels whose options Grafana publishes, and the type of a field's own settings where they have any. */
const PANELS = {
  bargauge: {},
  logs: {},
  nodeGraph: {},
  stat: {},
  table: { custom: 'Common.TableFieldOptions' },
  timeseries: { custom: 'Common.GraphFieldConfig' },
};

/** Of Prometheus there are none. */
const QUERIES = { loki: 'Loki.LokiDataQuery', tempo: 'Tempo.TempoQuery', prometheus: undefined };

const header = [
  `import type * as Raw from '${types}/raw/dashboard/x/types.gen';`,
  `import type * as Common from '${types}/index';`,
  `import type * as Loki from '${types}/raw/composable/loki/dataquery/x/types.gen';`,
  `import type * as Tempo from '${types}/raw/composable/tempo/dataquery/x/types.gen';`,
  ...Object.keys(PANELS).map(
    (type) => `import type * as ${type}_ from '${types}/raw/composable/${type.toLowerCase()}/panelcfg/x/types.gen';`
  ),
  // JSON has the text of an enum's value, which TypeScript does not take for the enum.
  'type Json<T> = T extends string ? `${T}` : T extends number | boolean | null | undefined ? T',
  '  : T extends (infer U)[] ? Json<U>[] : T extends object ? { [K in keyof T]: Json<T[K]> } : T;',
];

/** A source file with a constant for each part; `names[line]` says which part a line is of. */
function source(dashboard) {
  const lines = [...header];
  const names = {};
  const put = (name, type, value) => {
    names[lines.length] = name;
    lines.push(`export const c${lines.length}: Json<${type}> = ${JSON.stringify(value)};`);
  };
  put('the dashboard', 'Raw.Dashboard', { ...dashboard, panels: [] });
  for (const { targets = [], ...panel } of dashboard.panels) {
    const name = `panel "${panel.title}"`;
    put(name, panel.type === 'row' ? 'Raw.RowPanel' : 'Raw.Panel', panel);
    if (panel.type === 'row') continue;
    const known = PANELS[panel.type];
    if (!known) throw new Error(`${name} is a ${panel.type}: add it to PANELS`);
    put(`${name}, options`, `Partial<${panel.type}_.Options>`, panel.options);
    const { custom } = panel.fieldConfig.defaults;
    if (custom) put(`${name}, custom`, `Partial<${known.custom}>`, custom);
    for (const target of targets) {
      const { type } = target.datasource;
      if (!(type in QUERIES)) throw new Error(`${name} asks a ${type}: add it to QUERIES`);
      if (QUERIES[type]) put(`${name}, query ${target.refId}`, `Partial<${QUERIES[type]}>`, target);
    }
  }
  return { text: lines.join('\n'), names };
}

function complaints(dashboard) {
  const { text, names } = source(dashboard);
  const options = {
    strict: true,
    noEmit: true,
    skipLibCheck: true,
    target: ts.ScriptTarget.ES2022,
    module: ts.ModuleKind.ESNext,
    moduleResolution: ts.ModuleResolutionKind.Bundler,
  };
  const file = join(here, 'dashboard.ts');
  const host = ts.createCompilerHost(options);
  const { getSourceFile, fileExists } = host;
  host.fileExists = (path) => path === file || fileExists(path);
  host.getSourceFile = (path, ...rest) =>
    path === file ? ts.createSourceFile(path, text, ts.ScriptTarget.ES2022) : getSourceFile(path, ...rest);
  const program = ts.createProgram([file], options, host);
  return ts.getPreEmitDiagnostics(program).map((diagnostic) => {
    const message = ts.flattenDiagnosticMessageText(diagnostic.messageText, '\n  ');
    const line = diagnostic.file?.getLineAndCharacterOfPosition(diagnostic.start).line;
    return `${names[line] ?? 'check.mjs'}: ${message}`;
  });
}

let wrong = 0;
for (const name of readdirSync(dashboards).filter((name) => name.endsWith('.json'))) {
  const found = complaints(JSON.parse(readFileSync(join(dashboards, name), 'utf8')));
  found.forEach((complaint) => console.error(`${name}: ${complaint}`));
  if (!found.length) console.log(`${name}: as Grafana's types have it`);
  wrong += found.length;
}
process.exitCode = wrong ? 1 : 0;
