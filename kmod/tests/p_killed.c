// SPDX-License-Identifier: GPL-2.0
/*
 * A page that cannot be put back kills its process, and the kernel says so. It never happens; with the
 * fault that makes it happen, this program fails with just these words.
 */
#define _GNU_SOURCE
#include <sys/wait.h>

#include "partition.h"

/* Whether the kernel's messages have a text. */
static bool is_said(const char *what)
{
	int fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK);
	bool is_found = false;
	char text[8192];
	ssize_t n;

	need(fd >= 0);
	while (!is_found && ((n = read(fd, text, sizeof(text) - 1)) > 0 || errno == EPIPE)) {
		text[n > 0 ? n : 0] = 0;
		is_found = strstr(text, what);
	}
	close(fd);
	return is_found;
}

int main(void)
{
	struct ksm_partition_counts counts = { 0 };
	struct target target;
	uint64_t at;
	int fd, status = 0;

	allow(true);
	fd = partition("killed");
	at = subject(&target, 2, 1);
	order(&target, ORDER_SAME, at, 2, 1);
	need(!ksm_merge_counted(fd, target.pid, (void *)at, 2 * PAGE, &counts));
	usleep(200000);
	if (waitpid(target.pid, &status, WNOHANG) == target.pid)
		target.pid = 0;
	ok(target.pid, "the target lives (status %#x, killed %llu, said %d)", status, counts.n_killed,
	   is_said("could not be put back"));
	is(counts.n_merged, 1, "and its page is merged");
	if (target.pid)
		target_kill(&target);
	close(fd);
	need(!ksm_unlink("killed"));
	allow(false);
	return tap_done();
}
