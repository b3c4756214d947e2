import type { RolldownOptions } from "rolldown";

// Two programs and what they share. Commands are chunks of their own, so that `jobsctl --help` loads no gRPC. CommonJS, because
// Node's loader of modules costs the help a tenth more: it makes every export of node:fs, and loads what they need.
const programs = {
  input: { jobsctl: "cli/main.ts", jobsd: "cli/jobsd.ts" },
  platform: "node",
  plugins: [
    {
      name: "package",
      generateBundle() {
        this.emitFile({ type: "asset", fileName: "package.json", source: '{ "type": "commonjs" }\n' });
      },
    },
  ],
  output: {
    dir: "dist",
    format: "cjs",
    minify: true,
    cleanDir: true,
    entryFileNames: "[name].js",
    chunkFileNames: "[name]-[hash].js",
    // What every command line needs, the help above all, in one file.
    codeSplitting: {
      groups: [
        {
          name: "program",
          test: /\/cli\/(line\/(program|parse|bytes|caller)|tell\/(output|descriptors|text|exit))\.ts$|\/(src\/client\/errors|certs\/error|src\/os\/(bytes|errno|proc|signals))\.ts$|node_modules\/(sade|mri)\/|(?<!node_modules\/.*)\/package\.json$/,
        },
      ],
    },
  },
} satisfies RolldownOptions;

export default programs;
