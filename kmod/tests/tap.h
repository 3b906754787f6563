/* SPDX-License-Identifier: GPL-2.0 */
/* Test Anything Protocol: one line a check, the plan at the end. */
#ifndef TAP_H
#define TAP_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

static int tap_n, tap_n_bad;

/* Where the module has a fault, the first thing that is noticed is enough. */
static void tap_stop(void)
{
	if (tap_n_bad && getenv("TAP_STOP"))
		exit(1);
}

__attribute__((format(printf, 2, 3), unused))
static bool ok(bool is_ok, const char *format, ...)
{
	va_list arguments;

	tap_stop();
	printf("%sok %d - ", is_ok ? "" : "not ", ++tap_n);
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf("\n");
	fflush(stdout);
	tap_n_bad += !is_ok;
	return is_ok;
}

__attribute__((format(printf, 1, 2), unused))
static void diag(const char *format, ...)
{
	va_list arguments;

	printf("# ");
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf("\n");
	fflush(stdout);
}

/* Checks a == b and shows both where not. */
#define is(a, b, ...) is_(a, b, __LINE__, __VA_ARGS__)
#define is_(a, b, line, ...) do { \
	long long is_a = (long long)(a), is_b = (long long)(b); \
	if (!ok(is_a == is_b, __VA_ARGS__)) \
		diag("line %d: got %lld (%#llx), expected %lld (%#llx)", line, is_a, is_a, is_b, \
		     is_b); \
} while (0)

__attribute__((unused))
static void skip(const char *what, const char *why)
{
	printf("ok %d - %s # SKIP %s\n", ++tap_n, what, why);
}

__attribute__((unused))
static int tap_done(void)
{
	printf("1..%d\n", tap_n);
	fflush(stdout);
	return tap_n_bad != 0;
}

/* Something the test itself needs does not work. */
#define need(what) do { \
	if (!(what)) { \
		printf("not ok %d - %s:%d: %s (%m)\n", ++tap_n, __FILE__, __LINE__, #what); \
		fflush(stdout); \
		exit(1); \
	} \
} while (0)

#endif
