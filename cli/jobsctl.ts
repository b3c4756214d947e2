import manifest from "../package.json" with { type: "json" };
import type { Command, Flag, Program } from "./line/program.ts";

/** The flag of every command that can answer in the API's own messages. */
export const output: Flag = { name: "output", short: "o", value: "text|json", about: "json: the API's own messages" };
const archived: Flag = { name: "with-archive", about: "remove copies of their output in the daemon's archive, too" };
const force: Flag = { name: "force", about: "replace files that are there" };
const host: Flag = { name: "host", value: "NAME", about: "DNS name or address of the worker; repeatable" };
const bits: Flag = { name: "bits", value: "N", about: "size of the RSA keys, 4096 when not given" };
const ca: Flag = { name: "ca", value: "DIR|FILE", about: "the CA's directory, or its certificate" };
const caKey: Flag = { name: "ca-key", value: "FILE", about: "the CA's key, beside its certificate when not given" };
const days: Flag = { name: "days", value: "N", about: "life of the certificates, 90 when not given" };

const connectionFlags: readonly Flag[] = [
  { name: "server", value: "HOST:PORT", about: "the worker; or JOBS_SERVER" },
  { name: "ca", value: "FILE", about: "certificate of the CA; or JOBS_CA" },
  { name: "cert", value: "FILE", about: "your certificate; or JOBS_CERT" },
  { name: "key", value: "FILE", about: "your certificate's private key; or JOBS_KEY" },
  { name: "context", value: "NAME", about: "a context of $XDG_CONFIG_HOME/jobs/config.json; or JOBS_CONTEXT" },
];

const logFlags: readonly Flag[] = [
  { name: "log-limit", value: "SIZE", about: "size of the output to keep, from 1M to the daemon's limit" },
  { name: "log-keep", value: "newest|oldest", about: "which output to keep at that limit" },
  { name: "log-compress", value: "off|zstd", about: "compress the log when the job has ended, or not" },
  { name: "log-archive", value: "yes|no", about: "move the log to the daemon's archive, or not" },
  { name: "log-keep-for", value: "DURATION", about: "remove the log so long after the job's end" },
];

const limitFlags: readonly Flag[] = [
  { name: "cpus", value: "N", about: "CPUs at most, as in 0.5" },
  { name: "cpu-shares", value: "N", about: "weight against other jobs, 2 to 262144; 1024 is usual" },
  { name: "cpuset-cpus", value: "LIST", about: "only these CPUs, as in 0-2,7" },
  { name: "cpuset-mems", value: "LIST", about: "memory of only these nodes, as in 0" },
  { name: "memory", short: "m", value: "SIZE", about: "memory at most, as in 256M; -1 for no limit" },
  { name: "memory-reservation", value: "SIZE", about: "memory that stays with the job under pressure" },
  { name: "memory-swap", value: "SIZE", about: "memory and swap together at most; -1 for no limit" },
  { name: "pids", value: "N", about: "processes and threads at most; -1 for no limit, 0 for no fork" },
  { name: "io-weight", value: "N", about: "weight of its disk use against other jobs, 10 to 1000" },
  {
    name: "io-max",
    value: "DEV:RATES",
    about: "rates of a disk, as in /dev/sda:rbps=1M,wbps=1M,riops=100,wiops=100 or 8:0:wbps=max; repeatable",
  },
  {
    name: "device",
    value: "DEV[:ACCESS]",
    about: "a device that the job may use besides null, tty and the like: /dev/fuse:rw or c:10:*; repeatable",
  },
  { name: "resources", value: "FILE", about: "OCI LinuxResources in JSON, - for stdin; flags override its fields" },
];

const startFlags: readonly Flag[] = [
  {
    name: "env",
    short: "e",
    value: "NAME[=VALUE]",
    bytes: true,
    about: "a variable of the job; without VALUE it has the value that it has here; repeatable",
  },
  { name: "cwd", value: "DIR", bytes: true, about: "the job's directory, / when not given" },
  {
    name: "user",
    short: "u",
    value: "USER",
    about: "user of the job, of those that the daemon allows; a uid of its own when not given",
  },
  {
    name: "group",
    value: "GROUP",
    about: "group of the job: one of its user's, or one that the daemon allows; all of its user's when not given",
  },
  { name: "label", short: "l", value: "KEY=VALUE", about: "label to find the job by; repeatable" },
  { name: "time-limit", value: "DURATION", about: "end the job when it has run so long: 500ms, 10s, 5m, 2h, 1d" },
  {
    name: "network",
    value: "host|none",
    about: "network of the job, the host's when not given; none has a loopback only",
  },
  { name: "private-tmp", about: "an empty /tmp that nobody else sees, gone with the job" },
  { name: "merge", about: "send stderr to stdout, in the exact order of writing" },
  { name: "allow-user-namespaces", about: "the job may make user namespaces, where jobsd allows it" },
  {
    name: "rlimit",
    value: "NAME=SOFT[:HARD]",
    about: "limit of setrlimit, as in nofile=1024:4096, core=0, as=1G; repeatable",
  },
  { name: "umask", value: "MODE", about: "umask in octal, 022 when not given" },
  {
    name: "oom-score-adj",
    value: "N",
    about: "0 to 1000: how likely the job is killed first when the host is out of memory",
  },
  ...logFlags,
  ...limitFlags,
  { name: "request-id", value: "ID", about: "a second start with the same one starts nothing" },
];

/** The commands. The file of each is loaded when it runs, and gRPC with it, so that the help is there at once. */
const commands: readonly Command[] = [
  {
    name: "start",
    about: ["Starts a job and prints its id: jobsctl start [options] -- CMD ARGS..."],
    takesCommand: true,
    flags: [...startFlags, output],
    examples: ["start --memory 256M --time-limit 10m -- make all"],
    run: async (given) => (await import("./commands/start.ts")).start(given),
  },
  {
    name: "run",
    about: [
      "Starts a job, streams its output, exits with its code: jobsctl run [options] -- CMD ARGS...",
      "Ctrl-C stops the job, a second one kills it.",
      "Exits with 128+N for signal N, 124 when timed out, 125 when jobsctl failed, 126/127 when CMD cannot run/be found.",
    ],
    takesCommand: true,
    flags: startFlags,
    examples: ["run --cpus 0.5 -- sh -c 'echo hello; exit 3'"],
    run: async (given) => (await import("./commands/run.ts")).run(given),
  },
  {
    name: "stop",
    operands: "<id...>",
    about: ["Ends jobs, every process of them."],
    flags: [
      { name: "signal", short: "s", value: "SIGNAL", about: "signal by name or number, TERM when not given" },
      { name: "grace", value: "DURATION", about: "time from the signal to SIGKILL, 10s when not given" },
      output,
    ],
    run: async (given) => (await import("./commands/stop.ts")).stop(given),
  },
  {
    name: "rm",
    operands: "<id...>",
    about: ["Removes jobs that have ended: their records and their output."],
    flags: [archived, output],
    run: async (given) => (await import("./commands/remove.ts")).remove(given),
  },
  {
    name: "prune",
    about: [
      "Removes the jobs that have ended and that all flags name: their records and their output.",
      "At least one of --older-than, --state and --label is given; --older-than 0s names all.",
    ],
    flags: [
      { name: "older-than", value: "DURATION", about: "only jobs that ended so long ago, as in 7d" },
      {
        name: "state",
        value: "STATE",
        about: "only jobs that ended so: exited, signalled, stopped, timed-out, out-of-memory or lost; repeatable",
      },
      { name: "label", short: "l", value: "KEY=VALUE", about: "only jobs with this label; repeatable" },
      { name: "dry-run", about: "print their ids, and remove none" },
      archived,
      output,
    ],
    examples: ["prune --older-than 7d --state exited --label build=42 --dry-run"],
    run: async (given) => (await import("./commands/prune.ts")).prune(given),
  },
  {
    name: "query",
    alias: "status",
    operands: "<id...>",
    about: ["Shows what is known of jobs: state, end, usage, limits."],
    flags: [output],
    run: async (given) => (await import("./commands/query.ts")).query(given),
  },
  {
    name: "update",
    operands: "<id>",
    about: ["Changes limits of a running job: all that are given, or none of them. Other limits stay as they are."],
    flags: [...limitFlags, output],
    examples: ["update --cpus 2 --memory 1G 01m85bxjqw7ggzm1drbxxphnk6"],
    run: async (given) => (await import("./commands/update.ts")).update(given),
  },
  {
    name: "stats",
    operands: "<id>",
    about: [
      "Shows what a job uses, until it has ended.",
      "WAITS are the shares of the last 10 s in which a process of the job waited for CPU, memory or a disk.",
      "The first line and the last cover the job's whole life; each line between covers the time since the one before.",
      "Ctrl-C leaves the job alone.",
    ],
    flags: [
      {
        name: "interval",
        short: "i",
        value: "DURATION",
        about: "time between two lines, 1s when not given, at least 100ms",
      },
      { name: "once", about: "print one line only" },
      { name: "json", about: "print a JSON message a line, as --output json does" },
      output,
    ],
    run: async (given) => (await import("./commands/stats.ts")).stats(given),
  },
  {
    name: "stream",
    alias: "logs",
    operands: "<id>",
    about: ["Writes a job's output: its stdout to stdout, its stderr to stderr.", "Ctrl-C leaves the job alone."],
    flags: [
      { name: "follow", short: "f", about: "continue until the job has ended" },
      { name: "offset", value: "N", about: "begin at this byte of the output" },
      { name: "tail", short: "n", value: "N", about: "begin at the last N lines" },
      { name: "tail-bytes", value: "N", about: "begin at the last N bytes" },
      { name: "source", value: "stdout|stderr", about: "only the output of this one" },
      { name: "timestamps", short: "t", about: "print the time in front of each line" },
      output,
    ],
    run: async (given) => (await import("./commands/stream.ts")).stream(given),
  },
  {
    name: "list",
    alias: "ps",
    about: ["Lists jobs, newest first."],
    flags: [
      { name: "state", value: "STATE", about: "starting, running, stopping or ended; repeatable" },
      { name: "label", short: "l", value: "KEY=VALUE", about: "only jobs with this label; repeatable" },
      { name: "limit", short: "n", value: "N", about: "number of jobs at most, 100 when not given, 0 for all" },
      { name: "quiet", short: "q", about: "print ids only" },
      output,
    ],
    run: async (given) => (await import("./commands/list.ts")).list(given),
  },
  {
    name: "wait",
    operands: "<id...>",
    about: ["Waits until jobs have ended, and exits with the code of the first that did not exit with 0."],
    flags: [output],
    run: async (given) => (await import("./commands/wait.ts")).wait(given),
  },
  {
    name: "doctor",
    about: [
      "Shows what the worker's host can enforce; for what it cannot enforce, the reason and the remedy.",
      "Exits with 0 when nothing is missing, 1 when jobs lack something, 125 when no worker could be asked.",
    ],
    flags: [output],
    run: async (given) => (await import("./commands/doctor.ts")).doctor(given),
  },
  certs("init", undefined, "Makes a CA and certificates of a worker, a writer and a reader.", [
    { name: "out", value: "DIR", about: "directory to write to" },
    host,
    days,
    bits,
    force,
  ]),
  certs("request", "<name>", "Makes a private key and a request for its certificate.", [
    { name: "out", value: "DIR", about: "directory to write to" },
    host,
    bits,
    force,
  ]),
  certs("sign", "<csr>", "Signs a request with the role that you give.", [
    ca,
    caKey,
    { name: "role", value: "ROLE", about: "reader, writer, admin or worker" },
    host,
    days,
    { name: "min-bits", value: "N", about: "the smallest key to accept, 4096 when not given" },
    { name: "out", value: "FILE", about: "file of the certificate, beside the request when not given" },
    force,
  ]),
  certs("list", undefined, "Lists what a CA has signed, and what of it was revoked.", [ca]),
  certs("renew", "<file>", "Signs a certificate anew, for the same holder: subject, hosts, role and key stay.", [
    ca,
    caKey,
    { name: "old-ca", value: "DIR|FILE", about: "the CA that signed it, when another one renews it" },
    { name: "new-key", about: "make a new private key, too, in place of the one beside the certificate" },
    { name: "bits", value: "N", about: "size of a new key, that of the old one when not given" },
    { name: "days", value: "N", about: "life of the certificate, 90 when not given" },
    { name: "out", value: "FILE", about: "file of the new certificate; it replaces the old one when not given" },
    force,
  ]),
  certs(
    "revoke",
    "<certificate>",
    "Revokes a certificate, given by its file or serial number, and writes the CA's list.",
    [
      ca,
      caKey,
      { name: "reason", value: "REASON", about: "as in keyCompromise or superseded; unspecified when not given" },
      { name: "force", about: "revoke a serial number that the CA's index does not know" },
    ],
  ),
  certs("crl", undefined, "Writes the CA's list of revoked certificates anew, before the one there expires.", [
    ca,
    caKey,
    { name: "days", value: "N", about: "how long it holds; as long as the one before it, or 30, when not given" },
  ]),
  certs("inspect", "<file>", "Shows what a certificate or a request says.", []),
];

function certs(verb: string, operands: string | undefined, about: string, flags: readonly Flag[]): Command {
  return {
    name: `certs ${verb}`,
    ...(operands && { operands }),
    about: [about],
    offline: true,
    flags: [...flags, output],
    run: async (given) => (await import("./commands/certificates.ts")).certificates(given),
  };
}

/** The program: what it understands, for whoever runs it, or describes it to people and shells. */
export const jobsctl: Program = { name: "jobsctl", version: manifest.version, flags: connectionFlags, commands };
