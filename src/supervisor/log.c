/*
 * The output log: `output` holds the bytes at their offsets, `index` says what
 * they are. A byte's offset never changes. The index is written before the bytes
 * it speaks of, so a reader that takes the size of `output` first and the index
 * second knows the source and time of all it has seen.
 *
 *   index: a header of 64 bytes, then records of 16 bytes, little-endian.
 *   header: "jobslog1", first (u64), first_record (u64), dropped (u64), gap_end (u64),
 *           started in ns since the epoch (i64, 0 until exec), main process, supervisor (i32 each),
 *           started in ns of CLOCK_MONOTONIC (i64)
 *   record: offset (48 bits), source (16 bits), time in ms since the epoch (64 bits);
 *           it holds from its offset to the next record's. Source 0 is a gap.
 *
 * Bytes that cannot be kept (full disk, I/O error, limit) become a gap: their offsets are
 * used up and nothing is stored. With the newest kept, the oldest bytes are
 * punched out of the file; `first` moves before they go, so a reader that checks
 * it after reading never takes a hole for zeros.
 */
#define _GNU_SOURCE
#include "supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { HEADER_SIZE = 64, RECORD_SIZE = 16, BLOCK = 4096 };

struct header {
	char magic[8];
	uint64_t first, first_record, dropped, gap_end;
	int64_t started_ns;
	int32_t main, supervisor;
	int64_t started_clock_ns;
};
_Static_assert(sizeof(struct header) == HEADER_SIZE, "the records follow the header");

struct record {
	uint64_t offset_source;
	uint64_t ms;
};

static uint64_t now_ms(void)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static bool write_all(int fd, const void *bytes, size_t count, uint64_t offset, size_t *done)
{
	for (*done = 0; *done < count;) {
		ssize_t n = pwrite(fd, (const char *)bytes + *done, count - *done, (off_t)(offset + *done));
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		*done += (size_t)n;
	}
	return true;
}

/* The header's block is there from the start, so that this needs no room on a full disk. A disk that fails otherwise has
 * it written later: `stale` says so. */
static bool write_header(struct log *log)
{
	struct header header = {
		.first = log->first,
		.first_record = log->first_record,
		.dropped = log->dropped,
		.gap_end = log->in_gap ? log->size : 0,
		.started_ns = log->started_ns,
		.main = log->main,
		.supervisor = log->supervisor,
		.started_clock_ns = log->started_clock_ns,
	};
	size_t done;
	memcpy(header.magic, "jobslog1", sizeof header.magic);
	log->stale = !write_all(log->index, &header, sizeof header, 0, &done);
	return !log->stale;
}

/* Writes the first header of two new files, so that its block is there. False, with errno, when there is no room. */
bool log_prepare(struct log *log)
{
	return write_header(log);
}

/* Says in the header that the job runs. False, with errno, when nobody can read that: a daemon that knows nothing of
 * the job has removed its files. */
bool log_start(struct log *log, pid_t main, int64_t started_ns, int64_t started_clock_ns)
{
	struct stat index;
	log->main = main;
	log->started_ns = started_ns;
	log->started_clock_ns = started_clock_ns;
	if (!write_header(log) || fstat(log->index, &index) < 0)
		return false;
	errno = ENOENT;
	return index.st_nlink > 0;
}

/* Writes the header of a complete log where it does not say so yet. False, with errno, when that failed. */
bool log_finish(struct log *log)
{
	return !log->stale || write_header(log);
}

static uint64_t used(const struct log *log)
{
	return log->size - log->first + (log->records - log->first_record) * RECORD_SIZE;
}

static uint64_t offset_of(const struct record *record)
{
	return record->offset_source & 0xffffffffffff;
}

/* How many bytes are both between `begin` and `end` and between `from` and `to`. */
static uint64_t overlap(uint64_t begin, uint64_t end, uint64_t from, uint64_t to)
{
	begin = begin < from ? from : begin;
	end = end > to ? to : end;
	return begin < end ? end - begin : 0;
}

/* Moves `first_record` to the record that holds at `first`. Returns how many of the bytes from `from` to there were a gap. */
static uint64_t skip_records(struct log *log, uint64_t from)
{
	struct record records[256];
	uint64_t gaps = log->in_gap ? overlap(log->gap, log->size, from, log->first) : 0;
	while (log->first_record + 1 < log->records) {
		ssize_t n = pread(log->index, records, sizeof records,
				  (off_t)(HEADER_SIZE + log->first_record * RECORD_SIZE));
		if (n < 2 * RECORD_SIZE)
			return gaps;
		for (size_t i = 1; i < (size_t)n / RECORD_SIZE; i++) {
			uint64_t begin = offset_of(&records[i - 1]), end = offset_of(&records[i]);
			if (records[i - 1].offset_source >> 48 == SOURCE_GAP)
				gaps += overlap(begin, end, from, log->first);
			if (end > log->first)
				return gaps;
			log->first_record++;
		}
	}
	return gaps;
}

static void punch(int fd, uint64_t from, uint64_t to)
{
	from -= from % BLOCK;
	to -= to % BLOCK;
	/* Where the file system cannot punch, the log is longer than asked; its readers see no difference. */
	if (to > from && fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)from, (off_t)(to - from)) < 0)
		return;
}

/*
 * Lets go of the oldest bytes until `count` more fit; a sixteenth of the limit more, so that it is seldom done.
 * False when the header cannot say so: then nothing goes, or its readers would take holes for zeros.
 */
static bool make_room(struct log *log, size_t count)
{
	uint64_t old_first = log->first, old_record = log->first_record, old_dropped = log->dropped;
	uint64_t kept = log->size - log->first;
	uint64_t excess = used(log) + count + 2 * RECORD_SIZE - log->limit + log->limit / 16;
	if (excess > kept)
		excess = kept;
	log->first += excess;
	log->dropped += excess - skip_records(log, old_first); /* a gap was counted when it came */
	if (!write_header(log)) {
		log->first = old_first;
		log->first_record = old_record;
		log->dropped = old_dropped;
		return false;
	}
	punch(log->output, old_first, log->first);
	uint64_t old_place = HEADER_SIZE + old_record * RECORD_SIZE;
	punch(log->index, old_place < BLOCK ? BLOCK : old_place, HEADER_SIZE + log->first_record * RECORD_SIZE);
	return true;
}

static void drop(struct log *log, size_t count)
{
	if (!log->in_gap)
		log->gap = log->size;
	log->in_gap = true;
	log->size += count;
	log->dropped += count;
	write_header(log);
}

static bool add_record(struct log *log, enum source source, uint64_t ms)
{
	struct record records[2];
	size_t count = 0, done;
	if (log->in_gap)
		records[count++] = (struct record){ log->gap | (uint64_t)SOURCE_GAP << 48, ms };
	records[count++] = (struct record){ log->size | (uint64_t)source << 48, ms };
	if (!write_all(log->index, records, count * RECORD_SIZE, HEADER_SIZE + log->records * RECORD_SIZE, &done))
		return false;
	log->records += count;
	log->in_gap = false;
	log->last_source = source;
	log->last_ms = ms;
	return true;
}

/* With the oldest kept: how many bytes fit yet. Those are the last. */
static size_t fill(struct log *log)
{
	uint64_t taken = used(log) + 2 * RECORD_SIZE;
	log->full = true;
	return taken < log->limit ? (size_t)(log->limit - taken) : 0;
}

/* Appends what a source wrote; what cannot be kept is counted. Never fails. */
void log_append(struct log *log, enum source source, const char *bytes, size_t count)
{
	uint64_t ms = now_ms();
	size_t fits = log->full ? 0 : count, done = 0;
	if (log->limit && !log->full && used(log) + count + 2 * RECORD_SIZE > log->limit) {
		if (log->keep_oldest)
			fits = fill(log);
		else
			fits = make_room(log, count) ? count : 0;
	}
	bool recorded = !log->in_gap && source == log->last_source && ms == log->last_ms;
	if (fits && (recorded || add_record(log, source, ms)))
		write_all(log->output, bytes, fits, log->size, &done);
	log->size += done;
	if (done < count)
		drop(log, count - done);
	else if (log->stale)
		write_header(log);
}
