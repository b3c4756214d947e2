/* A job's device rules: an eBPF program on its cgroup, which the kernel asks at each open and mknod of a device. */
#define _GNU_SOURCE
#include "supervisor.h"

#include <errno.h>
#include <linux/bpf.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	PROGRAMS = 64, /* on one cgroup, as many as the kernel takes: BPF_CGROUP_MAX_PROGS */
	LOADS = 30,
};

/* Whose programs these are, for bpftool(8) and for us: others may have put theirs on the group, too. */
static const char NAME[] = "jobs_devices";

static int bpf(enum bpf_cmd command, union bpf_attr *attr)
{
	/* The whole union: Linux 6.17 writes beyond a shorter BPF_PROG_QUERY. */
	return (int)syscall(SYS_bpf, command, attr, sizeof *attr);
}

static uint64_t address(const void *of)
{
	return (uint64_t)(uintptr_t)of;
}

/* Returns a descriptor of the program (instructions, `size` bytes), or -1 with errno. */
int devices_load(const void *program, size_t size)
{
	union bpf_attr attr;
	memset(&attr, 0, sizeof attr);
	attr.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE;
	attr.insns = address(program);
	attr.insn_cnt = (uint32_t)(size / sizeof(struct bpf_insn));
	attr.license = address("");
	memcpy(attr.prog_name, NAME, sizeof NAME);
	/* The verifier gives up when the kernel wants something of the process, signals blocked or not. */
	int loaded = -1;
	errno = EAGAIN;
	for (int i = 0; i < LOADS && loaded < 0 && errno == EAGAIN; i++)
		loaded = bpf(BPF_PROG_LOAD, &attr);
	return loaded;
}

/* Whether a program is ours; -1 with errno when it cannot be known. */
static int is_ours(int program)
{
	struct bpf_prog_info info;
	union bpf_attr attr;
	memset(&info, 0, sizeof info);
	memset(&attr, 0, sizeof attr);
	attr.info.bpf_fd = (uint32_t)program;
	attr.info.info_len = sizeof info;
	attr.info.info = address(&info);
	return bpf(BPF_OBJ_GET_INFO_BY_FD, &attr) < 0 ? -1 : strncmp(info.name, NAME, sizeof info.name) == 0;
}

/* Finds our program on the group, *found -1 where there is none. False with errno when it cannot be known. */
static bool find(int cgroup, int *found)
{
	uint32_t ids[PROGRAMS];
	union bpf_attr attr;
	memset(&attr, 0, sizeof attr);
	attr.query.target_fd = (uint32_t)cgroup;
	attr.query.attach_type = BPF_CGROUP_DEVICE;
	attr.query.prog_ids = address(ids);
	attr.query.prog_cnt = PROGRAMS;
	if (bpf(BPF_PROG_QUERY, &attr) < 0)
		return false;
	uint32_t count = attr.query.prog_cnt;
	for (uint32_t i = 0; i < count; i++) {
		memset(&attr, 0, sizeof attr);
		attr.prog_id = ids[i];
		*found = bpf(BPF_PROG_GET_FD_BY_ID, &attr);
		int ours = *found < 0 ? -1 : is_ours(*found);
		if (ours > 0)
			return true;
		close_if_open(*found);
		if (ours < 0)
			return false;
	}
	*found = -1;
	return true;
}

/*
 * Has the program (instructions, `size` bytes) decide which devices the group's processes may open, at once instead of
 * the one that did. The group keeps it, as long as it is there. False with errno.
 */
bool devices_set(int cgroup, const void *program, size_t size)
{
	int old = -1, new = devices_load(program, size);
	union bpf_attr attr;
	bool done = new >= 0 && find(cgroup, &old);
	if (done) {
		memset(&attr, 0, sizeof attr);
		attr.target_fd = (uint32_t)cgroup;
		attr.attach_bpf_fd = (uint32_t)new;
		attr.attach_type = BPF_CGROUP_DEVICE;
		attr.attach_flags = BPF_F_ALLOW_MULTI | (old < 0 ? 0 : BPF_F_REPLACE);
		attr.replace_bpf_fd = old < 0 ? 0 : (uint32_t)old;
		done = bpf(BPF_PROG_ATTACH, &attr) == 0;
	}
	close_if_open(old);
	close_if_open(new);
	return done;
}
