// SPDX-License-Identifier: GPL-2.0
/* A kernel locked down for confidentiality starts no dump. Runs last: it cannot be undone. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "client.h"
#include "tap.h"

#define LOCKDOWN "/sys/kernel/security/lockdown"

static void work(uint64_t *shared)
{
	(void)shared;
}

int main(void)
{
	struct pagehash_start start;
	struct target target;
	char bytes[128];
	int fd;

	target_start(&target, work);
	start_of(&start, target.pid);
	need(write_to(LOCKDOWN, "integrity"));
	fd = dump_open(&start);
	ok(fd >= 0, "locked down for integrity: dumps are possible");
	need(write_to(LOCKDOWN, "confidentiality"));
	ok(open("/proc/kcore", O_RDONLY) < 0, "control: /proc/kcore is closed");
	is(dump_open(&start), -EPERM, "locked down for confidentiality: none");
	is(read(fd, bytes, sizeof(bytes)), sizeof(bytes), "one that had begun may be read");
	ok(ioctl(fd, PAGEHASH_IOC_START, &start) && errno == EPERM, "but not begun again");
	close(fd);
	target_kill(&target);
	return tap_done();
}
