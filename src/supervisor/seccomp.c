/*
 * A job of the supervisor's own user owns its cgroup's files, and is kept from them by a read-only mount alone. In a user
 * namespace it could mount them anew, and writable. So it makes none (seccomp(2)); its 32-bit system calls are refused whole.
 */
#define _GNU_SOURCE
#include "supervisor.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
enum { ARCH = AUDIT_ARCH_X86_64, FOREIGN = 0x40000000 }; /* x32's calls have this bit */
#elif defined(__aarch64__)
enum { ARCH = AUDIT_ARCH_AARCH64, FOREIGN = 0x40000000 };
#endif

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define IF(test, value, yes, no) BPF_JUMP(BPF_JMP | BPF_##test | BPF_K, value, yes, no)
#define ANSWER(answer) BPF_STMT(BPF_RET | BPF_K, answer)

bool deny_user_namespaces(void)
{
	struct sock_filter filter[] = {
		LOAD(arch),
		IF(JEQ, ARCH, 0, 9),
		LOAD(nr),
		IF(JSET, FOREIGN, 7, 0),
		IF(JEQ, SYS_clone3, 6, 0), /* its flags cannot be seen; libcs then take clone */
		IF(JEQ, SYS_setns, 6, 0),
		IF(JEQ, SYS_clone, 1, 0),
		IF(JEQ, SYS_unshare, 0, 2),
		LOAD(args[0]), /* both have their flags first, in the lower half: the hosts are little-endian */
		IF(JSET, CLONE_NEWUSER, 2, 0),
		ANSWER(SECCOMP_RET_ALLOW),
		ANSWER(SECCOMP_RET_ERRNO | ENOSYS),
		ANSWER(SECCOMP_RET_ERRNO | EPERM),
	};
	struct sock_fprog program = { sizeof filter / sizeof *filter, filter };
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0;
}
