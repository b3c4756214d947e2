/*
 * Theory of operation
 *
 *   daemon ──socket (fd 3)──▶ spawner ──fork──▶ spare: a supervisor that waits for its job
 *      │                         │                │
 *      └──start, by `control`────┼───────────────▶│ supervisor ──clone3──▶ job
 *                                └─── its end ◀───┘
 *
 * The spawner is a small process, so that a fork costs microseconds whatever the
 * daemon's size. It forks supervisors ahead: a spare has its directory, its files and
 * its pipes, and has told the daemon that it is ready. To start a job the daemon writes
 * the start to a spare's `control`, records the job while the supervisor prepares, gives
 * its directory the job's name, and says go: no process but the job's and no file is
 * made while somebody waits. Spares and the spawner end with the daemon
 * (hang-up of fd 3); supervisors do not: they own their jobs, pump stdout and stderr
 * into the output log, take orders, wait, end the tree and write the exit record, and
 * share nothing with the daemon but files:
 *
 *   JOB_DIR/control   FIFO. The supervisor holds it open for reading and writing,
 *                     so whoever reads it too sees a hang-up when, and only when,
 *                     the supervisor is gone. The daemon writes a start, go, and `struct order`s.
 *   JOB_DIR/output    the raw bytes.
 *   JOB_DIR/index     their sources and times, and, once exec has happened, the pids
 *                     and the start time of the job (log.c).
 *   JOB_DIR/exit      how the job ended; appears by rename, complete or not at all.
 *
 * A spare is told ready, or the stage and errno that failed; a start likewise, once; and
 * the spawner tells once more when a supervisor is gone. Before all that it tells which
 * parts of the isolation that it was asked for this host does not give.
 */
#ifndef SUPERVISOR_H
#define SUPERVISOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

enum {
	DAEMON_FD = 3,
	IDLE_FD = 4, /* the writing end of a pipe, held by the spawner and by spares: its end is theirs */
	ROOT_FD = 5, /* the root directory, with the host's mounts */
};

/* What failed before the job's first instruction; the daemon has the same list. */
enum stage {
	STAGE_REQUEST = 1,
	STAGE_DIRECTORY,
	STAGE_OUTPUT,
	STAGE_PIPE,
	STAGE_CGROUP,
	STAGE_CLONE,
	STAGE_STDIO,
	STAGE_LIMITS,
	STAGE_USER,
	STAGE_CWD,
	STAGE_EXEC,
	STAGE_ISOLATION,
	STAGE_DEVICES,
};

/* Frames from the daemon: a header, then what the type says. Little-endian, as the host is.
 * FRAME_START comes by a spare's `control`, the others by fd 3. */
enum frame_type { FRAME_START = 1, FRAME_ADOPT = 2, FRAME_SPARE = 3, FRAME_DEVICES = 4 };

struct frame {
	uint32_t size; /* of the whole frame, in bytes */
	uint32_t type;
	uint64_t job; /* the daemon's number for it, returned in replies */
};

enum { FRAME_MAX = 8 << 20, GO = 1 };

/* Follows the header of FRAME_START; then limits, the device program, groups, strings that each end in NUL:
 * cgroup directory or "", working directory, argv, environment.
 * When the daemon has recorded the job it writes a byte more, GO; until then nothing runs.
 * FRAME_ADOPT has just the job directory. FRAME_SPARE has nothing. FRAME_DEVICES has a job's
 * cgroup directory, with its NUL, and a program for it, which is answered by REPLY_DONE or REPLY_FAILED. */
struct start {
	int64_t time_limit_ms; /* 0: none */
	int64_t grace_ms;      /* between the time limit's SIGTERM and SIGKILL */
	uint64_t log_limit;    /* bytes on disk, 0: none */
	uint32_t keep_oldest;  /* at the log's limit; else the newest bytes are kept */
	uint32_t set_user;     /* enum set_user */
	uint32_t uid, gid;
	uint32_t group_count, argument_count, environment_count;
	uint32_t limit_count;
	uint32_t network_none; /* a network of its own, with loopback only */
	uint32_t private_tmp;
	uint32_t umask;
	int32_t oom_score;
	uint32_t device_bytes; /* of the eBPF program with the job's device rules; 0: it has none */
	uint32_t user_namespaces; /* it may make them, and use what they give */
	uint32_t merge;        /* stderr goes where stdout goes */
	uint32_t reserved_too; /* keeps the size a multiple of 8 */
};

/* Whether uid, gid and groups are to be taken on. ALONE fails, with EBUSY, where anything runs under that uid. */
enum set_user { AS_IT_IS = 0, SET_USER = 1, SET_USER_ALONE = 2 };

struct limit {
	uint32_t resource; /* RLIMIT_ */
	uint32_t reserved;
	uint64_t soft, hard;
};

struct request {
	struct start start;
	const struct limit *limits;
	const gid_t *groups;
	const void *devices;
	const char *cgroup, *cwd;
	char **argv, **envp;
	char *body; /* what all of these point into */
};

enum reply_kind {
	REPLY_STARTED = 1,
	REPLY_FAILED = 2,
	REPLY_GONE = 3,
	REPLY_READY = 4,
	REPLY_LACKS = 5,
	REPLY_DONE = 6,
};

struct reply {
	uint64_t job;
	uint32_t kind;
	int32_t pid; /* of the job, or of the spare, whose directory is .spare-PID; of REPLY_LACKS: an isolation part;
		      * of REPLY_GONE: the signal that killed the supervisor, 0 where none did or nobody knows */
	int32_t stage;
	int32_t error; /* errno; of REPLY_GONE: why it wrote no exit record */
};

/*
 * What the daemon writes to `control`: end the job. Behind it, in the same write, is who asks for that: orders with the
 * signal ORDER_BY, which is none, each with the next bytes of the name, percent-encoded and padded with spaces. A
 * supervisor of a release that knew none of those takes them for an order with an endless grace, and sends nothing.
 */
struct order {
	int32_t signal;
	int32_t reserved;
	union {
		int64_t grace_ms;
		char by[8];
	};
};
enum { ORDER_BY = -1 };

/* daemon.c: what is told to the daemon and heard from it; and two calls that most files make. */
bool tell(uint64_t job, enum reply_kind kind, pid_t pid, enum stage stage, int error);
bool take_bytes(int control, void *into, size_t count);
void close_if_open(int fd); /* leaves errno as it is */
int64_t now_ns(clockid_t clock);

/* isolate.c: what keeps jobs from the host and from each other; the daemon has the same list. */
enum part {
	PART_USER = 1 << 0, /* a user namespace: the way to the others without root */
	PART_PID = 1 << 1,
	PART_MOUNT = 1 << 2,
	PART_IPC = 1 << 3,
	PART_UTS = 1 << 4,
	PART_CGROUP = 1 << 5,
	PART_NAMESPACES = (1 << 6) - 1,
	PART_NO_NEW_PRIVILEGES = 1 << 6,
	PART_NO_CAPABILITIES = 1 << 7,
	PART_SECCOMP = 1 << 8, /* a filter of system calls */
	OWN_TMP = 1 << 30, /* no part: jobs have a /tmp of their own unless their starts say otherwise */
};

extern struct isolation {
	unsigned parts;
	const char *cgroups; /* where cgroup v2 is mounted */
	char **protected;    /* paths that root's jobs may not read ("-/path") or not change ("=/path") */
} isolation;

struct failure {
	int32_t stage, error;
};

bool find_parts(void);
int try_filter(void);
bool map_user(uid_t uid, gid_t gid);
pid_t fork_isolated(void);
pid_t outer_self(void); /* needs ROOT_FD */
bool drop_bounding_set(void);
unsigned isolate(uid_t uid, gid_t gid);
bool renew_mounts(void);
int open_own(const char *path);
bool settle_tmp(bool own);
bool is_own(const struct start *start); /* the job has the supervisor's user */
bool isolate_job(const struct request *request);

/* filter.c: which system calls a job may make. */
bool filter_calls(bool user_namespaces);
bool deny_user_namespaces(void);

/* apart.c */
bool keep_off(pid_t supervisor);

/* inherit.c: what is put back once for all jobs. */
bool put_back_inherited(void);
/* advise.c */
void hasten(pid_t process); /* 0 for this one */
void give_weight(pid_t daemon);

bool read_oom_score(void);
extern int oom_score; /* the spawner's oom_score_adj, which it has from the daemon */
bool join_own_keyring(void);

/* child.c: from clone3 to exec. */
/* A job: its pid as its supervisor numbers it, and as the host does; when it was executed. */
struct born {
	pid_t inner, outer;
	int64_t started_ns;       /* since the epoch */
	int64_t started_clock_ns; /* monotonic */
};
enum stage give_birth(const struct request *request, int cgroup, int out, int err, struct born *born);

/* devices.c: which devices a cgroup's processes may use. */
int devices_load(const void *program, size_t size);
bool devices_set(int cgroup, const void *program, size_t size);

/* log.c: the output log. */
enum source { SOURCE_GAP = 0, SOURCE_STDOUT = 1, SOURCE_STDERR = 2 };

struct log {
	int output, index;
	uint64_t limit;
	bool keep_oldest, full;
	uint64_t size, first;            /* byte offsets: the next, the oldest that is kept */
	uint64_t records, first_record;  /* record numbers, likewise */
	uint64_t dropped;                /* bytes that were not kept */
	bool in_gap;
	uint64_t gap;                    /* where the current gap began */
	enum source last_source;
	uint64_t last_ms;
	int64_t started_ns;              /* since the epoch; 0 until exec has happened */
	int64_t started_clock_ns;        /* monotonic */
	bool stale;                      /* the header could not be written as it is to be */
	pid_t main, supervisor;          /* as the host numbers them */
};

bool log_prepare(struct log *log);
bool log_start(struct log *log, pid_t main, int64_t started_ns, int64_t started_clock_ns);
void log_append(struct log *log, enum source source, const char *bytes, size_t count);
bool log_finish(struct log *log);

/* spare.c: what a supervisor has before it has a job. */
struct spare {
	int directory, control, record; /* of the job, its FIFO, its exit record in the making */
	int signals;
	pid_t pid; /* as the host numbers it */
	int out[2], err[2];
	struct log log;
};

int stand_by(uint64_t job, const char *jobs, uid_t uid, gid_t gid); /* uid and gid: those of the spawner */

/* supervise.c: has the job run, and stays until it has ended. Returns 0, or -1 when it did not run, or the errno that its
 * exit record could not be written for: the supervisor's exit status, which the spawner tells.
 * Frees what the request points to: up to 2 MB that nobody needs once the job has them. */
int supervise(uint64_t job, struct request *request, const struct spare *spare);

/* tree.c: a job's processes: all of its pid namespace, or of its cgroup, or, where it has neither, all that descend. */
struct tree {
	bool whole;       /* of a pid namespace, of which this process is the init */
	int cgroup;       /* its directory, or -1 */
	int events;       /* its cgroup.events, or -1 */
	pid_t main;
	char path[4096];  /* the main process's line in /proc/PID/cgroup */
};

void tree_identify(struct tree *tree);
bool tree_populated(const struct tree *tree);
unsigned tree_count(const struct tree *tree);
void tree_signal(const struct tree *tree, int signal);
void tree_kill(const struct tree *tree);

/* probe.c: what this host lets a supervisor do, told on stdout. Returns an exit status. */
int probe(const char *state);

#endif
