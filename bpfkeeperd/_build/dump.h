
/*
 * Contents of maps as text: a reader of entries, and a small machine that shows them. Its program is
 * made in Python from the BTF of key and value; every offset in it was checked against their sizes.
 */

enum keeper_code {
	KEEPER_LITERAL,	/* text_size bytes at text */
	KEEPER_KEY,	/* fields are those of the key from here on */
	KEEPER_VALUE,	/* ... those of the value, in a loop over CPUs of that CPU's */
	KEEPER_CPUS,	/* a loop over all CPUs up to op end, separated by a literal */
	KEEPER_CPU,	/* the number of this CPU, size characters wide */
	KEEPER_EACH,	/* a loop over count elements of size bytes, up to op end, likewise */
	KEEPER_PAD,	/* blanks up to the width of the column */
	KEEPER_NUMBER,	/* a field, see struct keeper_op */
	KEEPER_BOOL,
	KEEPER_ENUM,	/* one of count names from names[text] on, sorted by value; else the number */
	KEEPER_ADDRESS,	/* 0x and hex digits */
	KEEPER_FLOAT,	/* size 4 or 8; what JSON has no number for is the literal, if there is one */
	KEEPER_STRING,	/* size characters at most, up to a null byte, quoted as in JSON */
	KEEPER_BYTES,	/* hex, separated by colons */
	KEEPER_IPV4,
	KEEPER_IPV6,
};

enum keeper_flags {
	KEEPER_SIGNED = 1,
	KEEPER_NETWORK = 2,	/* network byte order */
	KEEPER_UNTIL_ZERO = 4,	/* a loop ends before an element that begins with 8 zero bytes */
};

/* A number is size bytes (1, 2, 4, 8) at offset, or bits bits (1 to 64) from bit (0 to 7) of it. */
struct keeper_op {
	uint32_t code, offset, size, count, end, text, text_size, flags, bit, bits;
};

#define KEEPER_SLACK 16

struct keeper_name {
	uint64_t value;
	uint32_t text, text_size;
};

struct keeper_format {
	const struct keeper_op *ops;
	uint32_t nr_ops;
	const char *text;	/* followed by KEEPER_SLACK bytes that may be read */
	const struct keeper_name *names;
	const uint32_t *cpus;
	uint32_t nr_cpus;
	uint32_t key_size, value_size;	/* of one entry as it was read: value_size is that of all CPUs */
	uint32_t cpu_size;		/* from one CPU's value to the next */
	uint32_t between, between_size;	/* literal between two entries */
	uint32_t width;			/* of the column that PAD fills */
	uint64_t shown;			/* entries so far */
};

/* fd -1: nothing is written, but the width of the column is found. error: 0 or an errno. */
struct keeper_output {
	int fd, error;
	char *data;
	size_t size, capacity;	/* capacity is 4 KiB at least */
	uint64_t flushed;
};

/* Each returns 0 or -errno; after the first error nothing is written any more. */
int keeper_output_text(struct keeper_output *out, const char *text, size_t size);
int keeper_output_flush(struct keeper_output *out);
int keeper_show(struct keeper_format *format, struct keeper_output *out, const char *keys,
		const char *values, uint32_t count);

/* Descriptors that can be read and not written. */
int keeper_open_pin_for_reading(const char *path);
int keeper_open_map_for_reading(uint32_t id);
