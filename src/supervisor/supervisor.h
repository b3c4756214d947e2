/*
 * Theory of operation
 *
 *   daemon ──socket (fd 3)──▶ spawner ──fork──▶ supervisor, one for each job ──clone3──▶ job
 *                                │                 │  pumps stdout and stderr into the output log,
 *                                │                 │  takes orders from the FIFO `control`,
 *                                └─ HUP of `control` ◀┘  waits, ends the tree, writes the exit record
 *
 * The spawner is a small process, so that a fork costs microseconds whatever the
 * daemon's size. It ends with the daemon (EOF on fd 3); supervisors do not: they
 * own their jobs and share nothing with the daemon but files:
 *
 *   JOB_DIR/control   FIFO. The supervisor holds it open for reading and writing,
 *                     so whoever reads it too sees a hang-up when, and only when,
 *                     the supervisor is gone. The daemon writes `struct order`s.
 *   JOB_DIR/output    the raw bytes.
 *   JOB_DIR/index     their sources and times, and, once exec has happened, the pids
 *                     and the start time of the job (log.c).
 *   JOB_DIR/exit      how the job ended; appears by rename, complete or not at all.
 *
 * The spawner answers each start once: started, or the stage and errno that
 * failed; and each job once more when its supervisor is gone.
 */
#ifndef SUPERVISOR_H
#define SUPERVISOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { DAEMON_FD = 3 };

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
};

/* Frames from the daemon: a header, then what the type says. Little-endian, as the host is. */
enum frame_type { FRAME_START = 1, FRAME_ADOPT = 2, FRAME_PREPARE = 3 };

struct frame {
	uint32_t size; /* of the whole frame, in bytes */
	uint32_t type;
	uint64_t job; /* the daemon's number for it, returned in replies */
};

enum { FRAME_MAX = 8 << 20 };

/* Follows the header of FRAME_START; then groups, then strings that each end in NUL:
 * job directory, cgroup directory or "", working directory, argv, environment.
 * FRAME_ADOPT has just the job directory. FRAME_PREPARE has the directory to make a
 * spare job directory in, and is not answered. */
struct start {
	int64_t time_limit_ms; /* 0: none */
	int64_t grace_ms;      /* between the time limit's SIGTERM and SIGKILL */
	uint64_t log_limit;    /* bytes on disk, 0: none */
	uint32_t keep_oldest;  /* at the log's limit; else the newest bytes are kept */
	uint32_t set_user;     /* uid, gid and groups are to be taken on */
	uint32_t uid, gid;
	uint32_t group_count, argument_count, environment_count;
	uint32_t reserved;
};

struct request {
	struct start start;
	const gid_t *groups;
	const char *directory, *cgroup, *cwd;
	char **argv, **envp;
	int oom_score; /* the spawner's oom_score_adj */
};

enum reply_kind { REPLY_STARTED = 1, REPLY_FAILED = 2, REPLY_GONE = 3 };

struct reply {
	uint64_t job;
	uint32_t kind;
	int32_t pid;
	int32_t stage;
	int32_t error; /* errno */
};

/* What the daemon writes to `control`: end the job. */
struct order {
	int32_t signal;
	int32_t reserved;
	int64_t grace_ms;
};

/* supervise.c: become the job's supervisor; returns only to be an exit status. */
int supervise(uint64_t job, const struct request *request, int directory, int control);

/* child.c: what is done once for all jobs; from clone3 to exec. */
bool prepare_inheritance(void);
struct failure {
	int32_t stage, error;
};
pid_t give_birth(const struct request *request, int cgroup, int out, int err, enum stage *stage);

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
	pid_t main;
};

int log_open(struct log *log, int directory, uint64_t limit, bool keep_oldest);
bool log_start(struct log *log, pid_t main, int64_t started_ns);
void log_append(struct log *log, enum source source, const char *bytes, size_t count);

/* tree.c: a job's processes, by its cgroup, or by descent where it has none. */
struct tree {
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

#endif
