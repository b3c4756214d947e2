import type { Attributes, Context, Span, SpanKind } from "@opentelemetry/api";
import { status } from "@grpc/grpc-js";
import { readTraceParent, type TraceParent, writeTraceParent } from "../os/traceparent.ts";
import type { Job } from "../worker/index.ts";

/** The name of the metadata that carries a traceparent; the variable of a job is this in capitals. */
export const TRACEPARENT = "traceparent";

/** A span that has begun. */
export interface Tracked {
  /** What is done within the span has this as its traceparent; undefined where there is neither a span nor a parent. */
  readonly traceparent: string | undefined;
}

/** Makes spans of what the server does. */
export interface Tracing {
  /** Begins the span of a call. */
  call(path: string, parent: TraceParent | undefined): Tracked & { end(code: status): void };
  /** Begins the span of a job whose start was asked for; nobody is told of it unless the job runs. */
  job(parent: TraceParent | undefined): Tracked & {
    /** The job runs, and its span ends with it. */
    started(job: Job): void;
  };
  /** Ends the span of a job. */
  ended(job: Job): void;
}

/** Makes no spans, and passes on the traceparent that came. */
export const NO_TRACING: Tracing = {
  call: (_, parent) => ({ traceparent: parent && writeTraceParent(parent), end() {} }),
  job: (parent) => ({ traceparent: parent && writeTraceParent(parent), started() {} }),
  ended() {},
};

/** The name under which every copy of @opentelemetry/api 1.x finds the SDK of this process. */
const SDK = Symbol.for("opentelemetry.js.api.1");

/** Statuses that are the server's fault (opentelemetry.io/docs/specs/semconv/rpc/grpc). */
const FAULTS: ReadonlySet<status> = new Set([
  status.UNKNOWN,
  status.DEADLINE_EXCEEDED,
  status.UNIMPLEMENTED,
  status.INTERNAL,
  status.UNAVAILABLE,
  status.DATA_LOSS,
]);

/** Opens tracing by OpenTelemetry, whose SDK has to be in this process before; without one, NO_TRACING. */
export async function openTracing(version: string): Promise<Tracing> {
  if (!(SDK in globalThis)) return NO_TRACING;
  const {
    ROOT_CONTEXT,
    SpanKind: kinds,
    SpanStatusCode,
    isSpanContextValid,
    trace,
  } = await import("@opentelemetry/api");
  const tracer = trace.getTracer("jobsd", version);
  const jobs = new Map<string, Span>();

  function contextOf(parent: TraceParent | undefined): Context {
    if (!parent) return ROOT_CONTEXT;
    const { traceId, spanId, flags } = parent;
    return trace.setSpanContext(ROOT_CONTEXT, { traceId, spanId, traceFlags: flags, isRemote: true });
  }
  function begin(name: string, kind: SpanKind, attributes: Attributes, parent: TraceParent | undefined) {
    const span = tracer.startSpan(name, { kind, attributes }, contextOf(parent));
    const { traceId, spanId, traceFlags } = span.spanContext();
    const own = isSpanContextValid(span.spanContext()) ? { traceId, spanId, flags: traceFlags } : parent;
    return { span, traceparent: own && writeTraceParent(own) };
  }

  return {
    call(path, parent) {
      const [, service = "", method = ""] = path.split("/");
      const rpc = { "rpc.system": "grpc", "rpc.service": service, "rpc.method": method };
      const { span, traceparent } = begin(`${service}/${method}`, kinds.SERVER, rpc, parent);
      return {
        traceparent,
        end(code) {
          span.setAttribute("rpc.grpc.status_code", code);
          if (FAULTS.has(code)) span.setStatus({ code: SpanStatusCode.ERROR, message: status[code] });
          span.end();
        },
      };
    },
    job(parent) {
      const { span, traceparent } = begin("job", kinds.INTERNAL, {}, parent);
      return {
        traceparent,
        started(job) {
          span.setAttributes({ "jobs.id": job.id, "process.pid": job.pid });
          jobs.set(job.id, span);
        },
      };
    },
    ended({ id, ended, endedAt }) {
      const span = jobs.get(id);
      if (!span || !jobs.delete(id)) return;
      if (ended) span.setAttributes({ "jobs.end": ended.how.kind, "process.exit.code": ended.exitCode });
      if (ended?.how.kind !== "exited") span.setStatus({ code: SpanStatusCode.ERROR, message: ended?.how.kind ?? "" });
      span.end(endedAt);
    },
  };
}

/** Returns the traceparent of a call's metadata; undefined where there is none, more than one, or one that is not valid. */
export function traceParentIn(values: readonly (string | Buffer)[]): TraceParent | undefined {
  const [text, ...others] = values;
  return typeof text === "string" && others.length === 0 ? readTraceParent(text) : undefined;
}
