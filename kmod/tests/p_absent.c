// SPDX-License-Identifier: GPL-2.0
/* A module built with CONFIG_SELECTIVE_KSM=n can dump, and nothing else. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "client.h"
#include "libksm.h"
#include "tap.h"

int main(void)
{
	int fd = open(DEVICE, O_RDONLY | O_CLOEXEC);

	ok(fd >= 0, "there is the device of dumps");
	ok(ksm_open("one", O_RDWR | KSM_SYNC | KSM_CREAT, 0600) < 0 && errno == ENOENT,
	   "there is no device of partitions");
	ok(access("/sys/kernel/mm/ksm/partition", F_OK) < 0, "nor a directory");
	ok(access("/sys/kernel/mm/ksm/run", F_OK) == 0, "the kernel's own files are there");
	ok(access("/sys/module/ksm_planner/parameters/allow_merge", F_OK) < 0,
	   "merging cannot be allowed");
	return tap_done();
}
