/*
 * Tells what becomes of system calls here, and makes none of them: a filter of its own, which comes after all others,
 * hands each to a thread that answers it. For each argument NUMBER[:ARGUMENT[:ARGUMENT]] it prints "NUMBER:… allowed", or
 * the number of the error. `i386` makes a call as 32-bit programs do: it prints its result, if it is still there to do so.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { OURS = 0x5eccca11, ANSWER = 999 };

static void *answer(void *listener)
{
	for (;;) {
		struct seccomp_notif call = { 0 };
		struct seccomp_notif_resp response = { 0 };
		if (ioctl(*(int *)listener, SECCOMP_IOCTL_NOTIF_RECV, &call) < 0)
			return NULL;
		response.id = call.id;
		response.error = -ANSWER;
		if (ioctl(*(int *)listener, SECCOMP_IOCTL_NOTIF_SEND, &response) < 0)
			return NULL;
	}
}

static void i386(void)
{
#if defined(__x86_64__)
	long result;
	__asm__ volatile("int $0x80" : "=a"(result) : "a"(20L) : "memory"); /* getpid */
	printf("i386 %ld\n", result);
#endif
}

static void ask(const char *text)
{
	unsigned long of[3] = { 0 };
	char *end = (char *)(size_t)text;
	for (size_t i = 0; i < 3 && (i == 0 || *end++ == ':'); i++)
		of[i] = strtoul(end, &end, 0);
	errno = 0;
	syscall((long)of[0], of[1], of[2], 0L, 0L, 0L, (long)OURS);
	if (errno == ANSWER)
		printf("%s allowed\n", text);
	else
		printf("%s %d\n", text, errno);
}

int main(int argc, char **argv)
{
	struct sock_filter lines[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[5])),
		BPF_JUMP(BPF_JMP | BPF_K | BPF_JEQ, OURS, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog filter = { sizeof lines / sizeof *lines, lines };
	pthread_t thread;
	if (argc == 2 && strcmp(argv[1], "i386") == 0) {
		i386();
		return 0;
	}
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return 1;
	static int listener;
	listener = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &filter);
	if (listener < 0 || pthread_create(&thread, NULL, answer, &listener) != 0)
		return 1;
	for (int i = 1; i < argc; i++)
		ask(argv[i]);
	return 0;
}
