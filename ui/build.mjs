// Builds the web interface into the Python package.
//
//   node build.mjs           build llamaswap/web/ui_dist
//   node build.mjs --watch   rebuild whenever a source changes
//   node build.mjs --tests   bundle the unit tests into .build/tests
//
// The output is committed, so that neither users nor Python developers need Node. The manifest carries a
// digest of the sources; tests/web/test_ui_dist.py recomputes it and fails when the output is stale.
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, watch, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { brotliCompressSync, constants, gzipSync } from "node:zlib";
import * as esbuild from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const out = join(here, "..", "llamaswap", "web", "ui_dist");
const skipped = new Set(["node_modules", ".build", "tests"]);

function walk(dir) {
  const found = [];
  for (const entry of readdirSync(dir, { withFileTypes: true })) {
    if (dir === here && skipped.has(entry.name)) continue;
    const path = join(dir, entry.name);
    if (entry.isDirectory()) found.push(...walk(path));
    else found.push(path);
  }
  return found;
}

const posix = (path) => path.split("\\").join("/");
const sha = (data) => createHash("sha256").update(data).digest("hex");

/** One line per source file, sorted by path: the Python test computes the same. */
function digest() {
  const lines = walk(here).map((path) => `${posix(relative(here, path))} ${sha(readFileSync(path))}\n`);
  return sha(lines.sort().join(""));
}

const common = {
  bundle: true,
  minify: true,
  format: "esm",
  target: ["es2022"],
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "none",
  metafile: true,
  charset: "utf8",
  define: { "process.env.NODE_ENV": '"production"' },
  logLevel: "warning",
};

function licences(metafiles) {
  const packages = new Map();
  for (const meta of metafiles) {
    for (const input of Object.keys(meta.inputs)) {
      const match = /node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(input);
      if (match) packages.set(match[1], join(here, "node_modules", match[1]));
    }
  }
  packages.set("katex", join(here, "node_modules", "katex"));
  const parts = ["Third-party software bundled into this web interface\n"];
  for (const [name, dir] of [...packages].sort()) {
    const info = JSON.parse(readFileSync(join(dir, "package.json"), "utf8"));
    const file = readdirSync(dir).find((entry) => /^licen[cs]e/i.test(entry));
    const text = file ? readFileSync(join(dir, file), "utf8") : `Licensed under ${info.license}.`;
    parts.push(`${"=".repeat(78)}\n${name} ${info.version} (${info.license})\n${"=".repeat(78)}\n${text.trim()}\n`);
  }
  return parts.join("\n");
}

async function build() {
  const started = Date.now();
  rmSync(out, { recursive: true, force: true });
  mkdirSync(join(out, "assets"), { recursive: true });

  const worker = await esbuild.build({
    ...common,
    entryPoints: { worker: join(here, "src/worker.ts") },
    outdir: join(out, "assets"),
    entryNames: "[name]-[hash]",
  });
  const workerName = Object.keys(worker.metafile.outputs).find((name) => name.endsWith(".js")).split("/").pop();

  // KaTeX's stylesheet names three formats of each font; every browser that runs this reads woff2.
  const katexCss = readFileSync(join(here, "node_modules/katex/dist/katex.min.css"), "utf8").replace(
    /,url\(fonts\/[^)]*\.(?:woff|ttf)\) format\("[^"]*"\)/g,
    "",
  );
  const katex = await esbuild.build({
    ...common,
    stdin: { contents: katexCss, loader: "css", resolveDir: join(here, "node_modules/katex/dist"), sourcefile: "katex.css" },
    outdir: join(out, "assets"),
    entryNames: "katex-[hash]",
    assetNames: "[name]-[hash]",
    loader: { ".woff2": "file" },
  });
  const katexName = Object.keys(katex.metafile.outputs).find((name) => name.endsWith(".css")).split("/").pop();

  const app = await esbuild.build({
    ...common,
    entryPoints: { app: join(here, "src/main.tsx"), style: join(here, "src/style.css") },
    outdir: join(out, "assets"),
    entryNames: "[name]-[hash]",
    chunkNames: "[name]-[hash]",
    splitting: true,
    define: { ...common.define, __WORKER__: JSON.stringify(workerName), __KATEX_CSS__: JSON.stringify(katexName) },
  });

  const outputs = app.metafile.outputs;
  const entry = (source) =>
    Object.keys(outputs).find((name) => outputs[name].entryPoint && posix(outputs[name].entryPoint).endsWith(source));
  const script = entry("src/main.tsx");
  const style = entry("src/style.css");
  // What the first page needs: the entry and everything it imports statically.
  const initial = new Set();
  const follow = (name) => {
    if (initial.has(name)) return;
    initial.add(name);
    for (const item of outputs[name].imports) if (item.kind === "import-statement") follow(item.path);
  };
  follow(script);

  const base = (name) => `assets/${name.split("/").pop()}`;
  const preload = [...initial]
    .filter((name) => name !== script)
    .map((name) => `    <link rel="modulepreload" href="./${base(name)}">\n`)
    .join("");
  const html = readFileSync(join(here, "index.html"), "utf8")
    .replace("%STYLE%", `./${base(style)}`)
    .replace("%SCRIPT%", `./${base(script)}`)
    .replace("    %PRELOAD%\n", preload);
  writeFileSync(join(out, "index.html"), html);
  for (const path of walk(join(here, "static"))) writeFileSync(join(out, path.split("/").pop()), readFileSync(path));
  writeFileSync(join(out, "third-party-licences.txt"), licences([app.metafile, worker.metafile]));

  const files = {};
  for (const path of walk(out).sort()) {
    const data = readFileSync(path);
    const record = { bytes: data.length };
    if (/\.(js|css|html|svg|txt|json|webmanifest)$/.test(path)) {
      const gz = gzipSync(data, { level: 9 });
      const br = brotliCompressSync(data, {
        params: { [constants.BROTLI_PARAM_QUALITY]: 11, [constants.BROTLI_PARAM_SIZE_HINT]: data.length },
      });
      writeFileSync(`${path}.gz`, gz);
      writeFileSync(`${path}.br`, br);
      record.gzip = gz.length;
      record.brotli = br.length;
    }
    files[posix(relative(out, path))] = record;
  }
  const manifest = {
    sources: digest(),
    script: base(script),
    style: base(style),
    worker: `assets/${workerName}`,
    initial: [...initial].map(base).sort(),
    files,
  };
  writeFileSync(join(out, "manifest.json"), `${JSON.stringify(manifest, null, 1)}\n`);

  const sum = (names, key) => names.reduce((total, name) => total + (files[name][key] ?? 0), 0);
  const scripts = Object.keys(files).filter((name) => name.endsWith(".js"));
  const kb = (bytes) => `${(bytes / 1024).toFixed(1)} KB`;
  console.log(
    `built in ${Date.now() - started} ms: initial JS ${kb(sum(manifest.initial, "brotli"))} br / ` +
      `${kb(sum(manifest.initial, "gzip"))} gz, all JS ${kb(sum(scripts, "brotli"))} br, ` +
      `CSS ${kb(files[manifest.style].brotli)} br`,
  );
}

async function tests() {
  const dir = join(here, "tests");
  await esbuild.build({
    ...common,
    minify: false,
    platform: "node",
    entryPoints: readdirSync(dir).filter((name) => name.endsWith(".test.ts")).map((name) => join(dir, name)),
    outdir: join(here, ".build/tests"),
    outExtension: { ".js": ".mjs" },
    define: { ...common.define, __WORKER__: '""', __KATEX_CSS__: '""' },
  });
}

if (process.argv.includes("--tests")) await tests();
else {
  await build();
  if (process.argv.includes("--watch")) {
    let pending;
    for (const dir of ["src", "static"]) {
      if (!existsSync(join(here, dir)) || !statSync(join(here, dir)).isDirectory()) continue;
      watch(join(here, dir), { recursive: true }, () => {
        clearTimeout(pending);
        pending = setTimeout(() => build().catch((error) => console.error(error.message)), 100);
      });
    }
  }
}
