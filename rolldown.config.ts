import { defineConfig } from "rolldown";

// Two programs and what they share. Commands are chunks of their own, so that `jobs --help` loads no gRPC.
export default defineConfig({
  input: { jobs: "cli/jobs.ts", jobsd: "cli/jobsd.ts" },
  platform: "node",
  output: {
    dir: "dist",
    format: "esm",
    minify: true,
    cleanDir: true,
    chunkFileNames: "[name]-[hash].js",
    // What every command line needs, the help above all, in one file.
    codeSplitting: {
      groups: [
        {
          name: "program",
          test: /\/cli\/(program|parse|bytes|caller|output|descriptors|text|exit)\.ts$|\/(src\/client\/errors|certs\/error|src\/worker\/bytes|src\/os\/errno)\.ts$|node_modules\/(sade|mri)\/|\/package\.json$/,
        },
      ],
    },
  },
});
