import type { Duration } from "../../proto/generated/google/protobuf/duration.ts";

/** `1.5s`, `250ms`, `2m05s`, `3h04m`, `2d01h`. */
export function formatDuration(duration: Duration | undefined): string {
  if (!duration) return "-";
  const ms = toMs(duration);
  if (ms < 1000) return `${Math.round(ms)}ms`;
  const s = ms / 1000;
  if (s < 60) return `${s.toFixed(1).replace(/\.0$/, "")}s`;
  if (s < 3600) return `${Math.trunc(s / 60)}m${two(s % 60)}s`;
  if (s < 86_400) return `${Math.trunc(s / 3600)}h${two((s % 3600) / 60)}m`;
  return `${Math.trunc(s / 86_400)}d${two((s % 86_400) / 3600)}h`;
}

function two(value: number): string {
  return String(Math.trunc(value)).padStart(2, "0");
}

/** `512 B`, `1.5 MiB`. */
export function formatBytes(bytes: bigint): string {
  const power = Math.min(4, Math.max(0, Math.trunc((bytes.toString(2).length - 1) / 10)));
  if (power === 0) return `${bytes} B`;
  return `${(Number(bytes) / 1024 ** power).toFixed(1).replace(/\.0$/, "")} ${"KMGT"[power - 1]}iB`;
}

export function toMs(duration: Duration | undefined): number {
  return duration ? Number(duration.seconds) * 1000 + duration.nanos / 1e6 : 0;
}
