/* What the scheduler is told of the daemon and its supervisors, which serve jobs that may be busy. */
#define _GNU_SOURCE
#include "supervisor.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <linux/sched/types.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SLICE_NS = 500000, NICE = -10 };

/*
 * A process that works in bursts shorter than a slice often is woken on a processor where a job runs. With a slice of the
 * length of its bursts it takes its turn at once (Linux 6.12, sched_setattr(2)); elsewhere nothing changes.
 */
void hasten(pid_t process)
{
	struct sched_attr attr = { .size = sizeof attr };
	if (syscall(SYS_sched_getattr, process, &attr, sizeof attr, 0) < 0 || attr.sched_policy != SCHED_NORMAL)
		return;
	attr.sched_runtime = SLICE_NS;
	attr.sched_flags |= SCHED_FLAG_RESET_ON_FORK; /* or the jobs would have it, too */
	if (syscall(SYS_sched_setattr, process, &attr, 0) < 0)
		return; /* it goes on as it was */
}

/*
 * What the daemon does for one call is little, but in bursts of calls it would come to its share beside jobs that spin, and
 * wait. It has more weight, where nobody has chosen one: among the processes of its group, and as a session, which is a
 * group of the scheduler's where no cgroup is (sched(7), "The autogroup feature").
 */
void give_weight(pid_t daemon)
{
	char path[64], weight[8];
	if (getpriority(PRIO_PROCESS, (id_t)daemon) != 0 || setpriority(PRIO_PROCESS, (id_t)daemon, NICE) < 0)
		return; /* an administrator's choice, or no privilege: it goes on as it was */
	if (getsid(daemon) != daemon)
		return; /* others are in the session, such as a shell */
	snprintf(path, sizeof path, "/proc/%d/autogroup", daemon);
	int length = snprintf(weight, sizeof weight, "%d", NICE), fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd >= 0 && write(fd, weight, (size_t)length) < 0)
		perror(path); /* it goes on as it was */
	close_if_open(fd);
}
