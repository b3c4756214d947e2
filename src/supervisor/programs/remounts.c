/* Mounts its cgroup anew in a user namespace, and writes to it. Its exit code tells how far it came: 0 is all the way. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

int main(void)
{
	if (unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWCGROUP) < 0)
		return 1;
	if (mount(NULL, "/", NULL, MS_PRIVATE | MS_REC, NULL) < 0 || mount("cgroup2", "/mnt", "cgroup2", 0, NULL) < 0)
		return 2;
	int fd = open("/mnt/cgroup.max.depth", O_WRONLY);
	return fd < 0 || write(fd, "7", 1) != 1 ? 3 : 0;
}
