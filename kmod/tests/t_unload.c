// SPDX-License-Identifier: GPL-2.0
/* The module stays while a file is open, and can be unloaded, and loaded again, when none is. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "client.h"
#include "tap.h"

static void work(uint64_t *shared)
{
	char *at = anon(64 * PAGE);

	shared[0] = (uintptr_t)at;
	fill(at, 1);
}

static int unload(void)
{
	return syscall(SYS_delete_module, "ksm_planner", O_NONBLOCK) ? errno : 0;
}

static int load(void)
{
	int fd = open("/lib/ksm_planner.ko", O_RDONLY), error;

	need(fd >= 0);
	error = syscall(SYS_finit_module, fd, "", 0) ? errno : 0;
	close(fd);
	return error;
}

int main(void)
{
	struct pagehash_start start;
	struct target target;
	uint64_t session;
	struct dump dump;
	char byte;
	int i, fd;

	target_start(&target, work);
	fd = open(DEVICE, O_RDONLY);
	need(fd >= 0);
	is(unload(), EAGAIN, "an open file keeps the module");
	start_of(&start, target.pid);
	need(!ioctl(fd, PAGEHASH_IOC_START, &start));
	is(unload(), EAGAIN, "so does a dump that was started");
	is(read(fd, &byte, 1), 1, "and read from");
	is(unload(), EAGAIN, "still");
	close(fd);
	dump_take(&dump, target.pid, 0);
	session = dump.header->session_id;
	dump_free(&dump);
	for (i = 0; i < 5; i++) {
		is(unload(), 0, "unloaded");
		ok(open(DEVICE, O_RDONLY) < 0, "the device is gone");
		is(load(), 0, "loaded again");
	}
	dump_take(&dump, target.pid, 0);
	ok(dump.header->session_id != session, "another load is another session");
	dump_free(&dump);
	target_kill(&target);
	return tap_done();
}
