// SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
#include <arpa/inet.h>
#include <endian.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- output ---- */

int keeper_output_flush(struct keeper_output *out)
{
	size_t done = 0;

	out->flushed += out->size;
	while (out->fd >= 0 && !out->error && done < out->size) {
		ssize_t written = write(out->fd, out->data + done, out->size - done);

		if (written >= 0) {
			done += written;
		} else if (errno == EAGAIN) {
			struct pollfd wait = { .fd = out->fd, .events = POLLOUT };

			poll(&wait, 1, -1);
		} else if (errno != EINTR) {
			out->error = errno;
		}
	}
	out->size = 0;
	return -out->error;
}

/* Room for size bytes, which are far fewer than the capacity. */
static char *room(struct keeper_output *out, size_t size)
{
	if (out->capacity - out->size < size)
		keeper_output_flush(out);
	return out->data + out->size;
}

static void put(struct keeper_output *out, const char *text, size_t size)
{
	while (size) {
		size_t part;

		if (out->size == out->capacity)
			keeper_output_flush(out);
		part = out->capacity - out->size;
		if (part > size)
			part = size;
		memcpy(out->data + out->size, text, part);
		out->size += part;
		text += part;
		size -= part;
	}
}

int keeper_output_text(struct keeper_output *out, const char *text, size_t size)
{
	put(out, text, size);
	return -out->error;
}

/* Text of a format, which may be read a little beyond its end: copied in pieces of fixed size. */
static void put_literal(struct keeper_output *out, const char *text, size_t size)
{
	char *to = out->data + out->size;

	if (out->capacity - out->size < size + KEEPER_SLACK) {
		put(out, text, size);
		return;
	}
	for (size_t done = 0; done < size; done += KEEPER_SLACK)
		memcpy(to + done, text + done, KEEPER_SLACK);
	out->size += size;
}

static void put_blanks(struct keeper_output *out, uint64_t count)
{
	while (count) {
		size_t part = count < 64 ? count : 64;

		memset(room(out, part), ' ', part);
		out->size += part;
		count -= part;
	}
}

static uint64_t position(const struct keeper_output *out)
{
	return out->flushed + out->size;
}

/* ---- numbers ---- */

static const char two_digits[] =
	"00010203040506070809101112131415161718192021222324252627282930313233343536373839"
	"40414243444546474849505152535455565758596061626364656667686970717273747576777879"
	"8081828384858687888990919293949596979899";

static unsigned int digits_of(uint64_t number)
{
	static const uint64_t powers[] = {
		1ull, 10ull, 100ull, 1000ull, 10000ull, 100000ull, 1000000ull, 10000000ull,
		100000000ull, 1000000000ull, 10000000000ull, 100000000000ull, 1000000000000ull,
		10000000000000ull, 100000000000000ull, 1000000000000000ull, 10000000000000000ull,
		100000000000000000ull, 1000000000000000000ull, 10000000000000000000ull,
	};
	/* 1233 / 4096 is log10(2), near enough for 64 bits. */
	unsigned int least = (64 - __builtin_clzll(number | 1)) * 1233 >> 12;

	return number < powers[least] ? (least ? least : 1) : least + 1;
}

static void put_unsigned(struct keeper_output *out, uint64_t number)
{
	unsigned int size = digits_of(number);
	char *p = room(out, 24) + size;

	out->size += size;
	for (; number >= 100; number /= 100) {
		p -= 2;
		memcpy(p, two_digits + number % 100 * 2, 2);
	}
	if (number >= 10)
		memcpy(p - 2, two_digits + number * 2, 2);
	else
		p[-1] = '0' + number;
}

static void put_number(struct keeper_output *out, uint64_t number, bool is_signed)
{
	if (is_signed && number >> 63) {
		put(out, "-", 1);
		number = -number;
	}
	put_unsigned(out, number);
}

static uint64_t sign_extended(uint64_t number, unsigned int bits)
{
	uint64_t sign = 1ull << (bits - 1);

	return (number ^ sign) - sign;
}

/* Bits are counted from the least significant on little-endian machines, else from the most. */
static uint64_t load_bits(const struct keeper_op *op, const unsigned char *p)
{
	unsigned int bytes = (op->bit + op->bits + 7) / 8;
	unsigned __int128 all = 0;

	for (unsigned int i = 0; i < bytes; i++) {
		if (__BYTE_ORDER == __LITTLE_ENDIAN)
			all |= (unsigned __int128)p[i] << (8 * i);
		else
			all = all << 8 | p[i];
	}
	all >>= __BYTE_ORDER == __LITTLE_ENDIAN ? op->bit : 8 * bytes - op->bit - op->bits;
	return op->bits == 64 ? (uint64_t)all : (uint64_t)all & ((1ull << op->bits) - 1);
}

static uint64_t load_whole(const struct keeper_op *op, const unsigned char *p)
{
	bool network = op->flags & KEEPER_NETWORK;
	uint16_t two;
	uint32_t four;
	uint64_t eight;

	switch (op->size) {
	case 1:
		return *p;
	case 2:
		memcpy(&two, p, sizeof(two));
		return network ? be16toh(two) : two;
	case 4:
		memcpy(&four, p, sizeof(four));
		return network ? be32toh(four) : four;
	default:
		memcpy(&eight, p, sizeof(eight));
		return network ? be64toh(eight) : eight;
	}
}

static uint64_t load(const struct keeper_op *op, const char *base)
{
	const unsigned char *p = (const unsigned char *)base + op->offset;
	uint64_t number = op->bits ? load_bits(op, p) : load_whole(op, p);

	if (op->flags & KEEPER_SIGNED)
		number = sign_extended(number, op->bits ? op->bits : op->size * 8);
	return number;
}

/* ---- what is no plain number ---- */

static void show_enum(const struct keeper_format *f, struct keeper_output *out,
		      const struct keeper_op *op, const char *base)
{
	const struct keeper_name *names = f->names + op->text;
	uint64_t value = load(op, base);
	uint32_t low = 0, high = op->count;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;

		if (names[middle].value < value)
			low = middle + 1;
		else
			high = middle;
	}
	if (low < op->count && names[low].value == value)
		put_literal(out, f->text + names[low].text, names[low].text_size);
	else
		put_number(out, value, op->flags & KEEPER_SIGNED);
}

static void show_bool(struct keeper_output *out, uint64_t value)
{
	if (value > 1)
		put_number(out, value, false);
	else
		put(out, value ? "true" : "false", value ? 4 : 5);
}

/* As few digits as bring the same number back; the C locale is in force for numbers. */
static void show_float(const struct keeper_format *f, struct keeper_output *out,
		       const struct keeper_op *op, const char *p)
{
	bool is_single = op->size == sizeof(float);
	int most = is_single ? 9 : 17;
	float single = 0;
	double number;
	int size;

	if (is_single) {
		memcpy(&single, p, sizeof(single));
		number = single;
	} else {
		memcpy(&number, p, sizeof(number));
	}
	if (op->text_size && (number != number || number - number != 0)) {
		put_literal(out, f->text + op->text, op->text_size);
		return;
	}
	for (int digits = is_single ? 6 : 15; ; digits++) {
		char *text = room(out, 40);

		size = snprintf(text, 40, "%.*g", digits, number);
		if (digits >= most ||
		    (is_single ? strtof(text, NULL) == single : strtod(text, NULL) == number))
			break;
	}
	out->size += size;
}

static const char hex_digits[] = "0123456789abcdef";

static void show_bytes(struct keeper_output *out, const unsigned char *p, uint32_t size)
{
	for (uint32_t i = 0; i < size; i++) {
		char *text = room(out, 3);

		text[0] = hex_digits[p[i] >> 4];
		text[1] = hex_digits[p[i] & 15];
		text[2] = ':';
		out->size += i + 1 < size ? 3 : 2;
	}
}

/* Bytes of the character at p; 0 if it is no UTF-8, or a control character beyond ASCII. */
static uint32_t utf8_size(const unsigned char *p, uint32_t left)
{
	uint32_t size = *p < 0xe0 ? 2 : *p < 0xf0 ? 3 : 4;
	unsigned char least = 0x80, most = 0xbf;

	if (*p < 0xc2 || *p > 0xf4 || left < size)
		return 0;
	switch (*p) {
	case 0xc2:	/* U+0080 to U+009F: terminals obey them */
	case 0xe0:	/* could be shorter */
		least = 0xa0;
		break;
	case 0xed:	/* surrogates */
		most = 0x9f;
		break;
	case 0xf0:	/* could be shorter */
		least = 0x90;
		break;
	case 0xf4:	/* beyond U+10FFFF */
		most = 0x8f;
		break;
	}
	if (p[1] < least || p[1] > most)
		return 0;
	for (uint32_t i = 2; i < size; i++)
		if ((p[i] & 0xc0) != 0x80)
			return 0;
	return size;
}

static void show_string(struct keeper_output *out, const unsigned char *p, uint32_t most)
{
	uint32_t left = strnlen((const char *)p, most), size;

	put(out, "\"", 1);
	for (; left; left -= size, p += size) {
		char *text = room(out, 8);

		size = 1;
		if (*p == '"' || *p == '\\') {
			*text++ = '\\';
			*text++ = *p;
		} else if (*p >= 0x20 && *p < 0x7f) {
			*text++ = *p;
		} else if (*p >= 0x80 && (size = utf8_size(p, left))) {
			memcpy(text, p, size);
			text += size;
		} else {
			size = 1;
			memcpy(text, "\\u00", 4);
			text[4] = hex_digits[*p >> 4];
			text[5] = hex_digits[*p & 15];
			text += 6;
		}
		out->size = text - out->data;
	}
	put(out, "\"", 1);
}

static void show_ipv4(struct keeper_output *out, const unsigned char *p)
{
	char *text = room(out, 16);

	for (int i = 0; i < 4; i++) {
		if (p[i] >= 100)
			*text++ = '0' + p[i] / 100;
		if (p[i] >= 10)
			*text++ = '0' + p[i] / 10 % 10;
		*text++ = '0' + p[i] % 10;
		if (i < 3)
			*text++ = '.';
	}
	out->size = text - out->data;
}

static void show_ipv6(struct keeper_output *out, const char *p)
{
	char text[INET6_ADDRSTRLEN] = "";

	inet_ntop(AF_INET6, p, text, sizeof(text));
	put(out, text, strlen(text));
}

static void show_address(struct keeper_output *out, uint64_t number)
{
	char *text = room(out, 24);

	out->size += snprintf(text, 24, "0x%llx", (unsigned long long)number);
}

static void show_cpu(struct keeper_output *out, uint32_t number, uint32_t width)
{
	unsigned int size = digits_of(number);

	put_blanks(out, size < width ? width - size : 0);
	put_unsigned(out, number);
}

/* ---- the machine ---- */

struct entry {
	const char *key, *value;
	uint64_t start;		/* position in the output of the line */
	uint32_t cpu;		/* index of the CPU in a loop over them */
};

static void run(struct keeper_format *f, struct keeper_output *out, struct entry *e,
		const char *base, uint32_t from, uint32_t to);

static void run_each(struct keeper_format *f, struct keeper_output *out, struct entry *e,
		     const char *base, uint32_t at)
{
	const struct keeper_op *op = f->ops + at;

	base += op->offset;
	for (uint32_t i = 0; i < op->count; i++, base += op->size) {
		static const char zeros[8];

		if (op->flags & KEEPER_UNTIL_ZERO && !memcmp(base, zeros, sizeof(zeros)))
			break;
		if (i)
			put_literal(out, f->text + op->text, op->text_size);
		run(f, out, e, base, at + 1, op->end);
	}
}

static void run_cpus(struct keeper_format *f, struct keeper_output *out, struct entry *e,
		     uint32_t at)
{
	const struct keeper_op *op = f->ops + at;

	for (e->cpu = 0; e->cpu < f->nr_cpus; e->cpu++) {
		if (e->cpu)
			put_literal(out, f->text + op->text, op->text_size);
		e->start = position(out);
		run(f, out, e, e->value, at + 1, op->end);
	}
	e->cpu = 0;
}

static void pad(struct keeper_format *f, struct keeper_output *out, const struct entry *e)
{
	uint64_t used = position(out) - e->start;

	if (out->fd >= 0)
		put_blanks(out, used < f->width ? f->width - used : 0);
	else if (used > f->width)
		f->width = used;
}

static void run(struct keeper_format *f, struct keeper_output *out, struct entry *e,
		const char *base, uint32_t from, uint32_t to)
{
	for (uint32_t i = from; i < to; i++) {
		const struct keeper_op *op = f->ops + i;

		switch (op->code) {
		case KEEPER_LITERAL:
			put_literal(out, f->text + op->text, op->text_size);
			break;
		case KEEPER_KEY:
			base = e->key;
			break;
		case KEEPER_VALUE:
			base = e->value + (size_t)e->cpu * f->cpu_size;
			break;
		case KEEPER_CPUS:
			run_cpus(f, out, e, i);
			i = op->end - 1;
			break;
		case KEEPER_CPU:
			show_cpu(out, f->cpus[e->cpu], op->size);
			break;
		case KEEPER_EACH:
			run_each(f, out, e, base, i);
			i = op->end - 1;
			break;
		case KEEPER_PAD:
			pad(f, out, e);
			break;
		case KEEPER_NUMBER:
			put_number(out, load(op, base), op->flags & KEEPER_SIGNED);
			break;
		case KEEPER_BOOL:
			show_bool(out, load(op, base));
			break;
		case KEEPER_ENUM:
			show_enum(f, out, op, base);
			break;
		case KEEPER_ADDRESS:
			show_address(out, load(op, base));
			break;
		case KEEPER_FLOAT:
			show_float(f, out, op, base + op->offset);
			break;
		case KEEPER_STRING:
			show_string(out, (const unsigned char *)base + op->offset, op->size);
			break;
		case KEEPER_BYTES:
			show_bytes(out, (const unsigned char *)base + op->offset, op->size);
			break;
		case KEEPER_IPV4:
			show_ipv4(out, (const unsigned char *)base + op->offset);
			break;
		case KEEPER_IPV6:
			show_ipv6(out, base + op->offset);
			break;
		}
	}
}

int keeper_show(struct keeper_format *f, struct keeper_output *out, const char *keys,
		const char *values, uint32_t count)
{
	for (uint32_t i = 0; i < count && !out->error; i++) {
		struct entry e = {
			.key = keys + (size_t)i * f->key_size,
			.value = values + (size_t)i * f->value_size,
		};

		if (f->shown++)
			put_literal(out, f->text + f->between, f->between_size);
		e.start = position(out);
		run(f, out, &e, e.key, 0, f->nr_ops);
	}
	return -out->error;
}

/* ---- reading ---- */

int keeper_open_pin_for_reading(const char *path)
{
	LIBBPF_OPTS(bpf_obj_get_opts, opts, .file_flags = BPF_F_RDONLY);

	return bpf_obj_get_opts(path, &opts);
}

int keeper_open_map_for_reading(uint32_t id)
{
	LIBBPF_OPTS(bpf_get_fd_by_id_opts, opts, .open_flags = BPF_F_RDONLY);

	return bpf_map_get_fd_by_id_opts(id, &opts);
}
