/* `denies-devices GROUP`: puts a device program on a cgroup that allows nothing, as somebody else may. */
#include <fcntl.h>
#include <linux/bpf.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct bpf_insn deny[] = {
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0 },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	union bpf_attr attr;
	int group = argc == 2 ? open(argv[1], O_RDONLY | O_DIRECTORY) : -1;
	memset(&attr, 0, sizeof attr);
	attr.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE;
	attr.insns = (uint64_t)(uintptr_t)deny;
	attr.insn_cnt = 2;
	attr.license = (uint64_t)(uintptr_t)"";
	int program = (int)syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof attr);
	memset(&attr, 0, sizeof attr);
	attr.target_fd = (uint32_t)group;
	attr.attach_bpf_fd = (uint32_t)program;
	attr.attach_type = BPF_CGROUP_DEVICE;
	attr.attach_flags = BPF_F_ALLOW_MULTI;
	if (group < 0 || program < 0 || syscall(SYS_bpf, BPF_PROG_ATTACH, &attr, sizeof attr) < 0) {
		perror("denies-devices");
		return 1;
	}
	return 0;
}
