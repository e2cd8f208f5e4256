/*
 * Hashes of pages by BLAKE3 (its specification, sections 2.1 to 2.5), many side by side: a page is four chunks of 1 KiB,
 * so eight lanes hash two pages, and 32 chunks, eight pages, fill the lanes of each level of the trees above them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"

#define INLINE static inline __attribute__((always_inline))

enum { LANES = 8, PAGE = 4096, CHUNK = 1024, BLOCK = 64, CHUNKS = PAGE / CHUNK, BATCH = 8, HASH = 16 };
enum { CHUNK_START = 1, CHUNK_END = 2, PARENT = 4, ROOT = 8 };

typedef uint32_t vector __attribute__((vector_size(4 * LANES)));

static const uint32_t IV[8] = {0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A,
                               0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19};

static const uint8_t SCHEDULE[7][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    {2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8},
    {3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1},
    {10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6},
    {12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4},
    {9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7},
    {11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13},
};

INLINE void mix(vector v[16], int a, int b, int c, int d, vector x, vector y)
{
    v[a] += v[b] + x;
    v[d] ^= v[a];
    v[d] = v[d] >> 16 | v[d] << 16;
    v[c] += v[d];
    v[b] ^= v[c];
    v[b] = v[b] >> 12 | v[b] << 20;
    v[a] += v[b] + y;
    v[d] ^= v[a];
    v[d] = v[d] >> 8 | v[d] << 24;
    v[c] += v[d];
    v[b] ^= v[c];
    v[b] = v[b] >> 7 | v[b] << 25;
}

/* The compression function of each lane, on a whole block, truncated to the chaining value. */
INLINE void compress(vector state[8], const vector message[16], vector counter, uint32_t flags)
{
    vector zero = {0};
    vector v[16];

    for (int i = 0; i < 8; i++)
        v[i] = state[i];
    for (int i = 0; i < 4; i++)
        v[8 + i] = zero + IV[i];
    v[12] = counter;
    v[13] = zero;
    v[14] = zero + BLOCK;
    v[15] = zero + flags;
#pragma GCC unroll 7
    for (int round = 0; round < 7; round++) {
        const uint8_t *s = SCHEDULE[round];
        mix(v, 0, 4, 8, 12, message[s[0]], message[s[1]]);
        mix(v, 1, 5, 9, 13, message[s[2]], message[s[3]]);
        mix(v, 2, 6, 10, 14, message[s[4]], message[s[5]]);
        mix(v, 3, 7, 11, 15, message[s[6]], message[s[7]]);
        mix(v, 0, 5, 10, 15, message[s[8]], message[s[9]]);
        mix(v, 1, 6, 11, 12, message[s[10]], message[s[11]]);
        mix(v, 2, 7, 8, 13, message[s[12]], message[s[13]]);
        mix(v, 3, 4, 9, 14, message[s[14]], message[s[15]]);
    }
    for (int i = 0; i < 8; i++)
        state[i] = v[i] ^ v[8 + i];
}

INLINE void start(vector state[8])
{
    vector zero = {0};

    for (int i = 0; i < 8; i++)
        state[i] = zero + IV[i];
}

/* Eight rows become eight columns. */
INLINE void transpose(vector rows[LANES])
{
    vector a[LANES], b[LANES];

    for (int i = 0; i < LANES; i += 2) {
        a[i] = __builtin_shuffle(rows[i], rows[i + 1], (vector){0, 8, 2, 10, 4, 12, 6, 14});
        a[i + 1] = __builtin_shuffle(rows[i], rows[i + 1], (vector){1, 9, 3, 11, 5, 13, 7, 15});
    }
    for (int i = 0; i < LANES; i += 4)
        for (int k = 0; k < 2; k++) {
            b[i + k] = __builtin_shuffle(a[i + k], a[i + k + 2], (vector){0, 1, 8, 9, 4, 5, 12, 13});
            b[i + k + 2] = __builtin_shuffle(a[i + k], a[i + k + 2], (vector){2, 3, 10, 11, 6, 7, 14, 15});
        }
    for (int i = 0; i < 4; i++) {
        rows[i] = __builtin_shuffle(b[i], b[i + 4], (vector){0, 1, 2, 3, 8, 9, 10, 11});
        rows[i + 4] = __builtin_shuffle(b[i], b[i + 4], (vector){4, 5, 6, 7, 12, 13, 14, 15});
    }
}

/* Message words of LANES blocks of 64 bytes, which begin at these addresses. */
INLINE void load(vector message[16], const unsigned char *const blocks[LANES])
{
    for (int half = 0; half < 2; half++) {
        for (int lane = 0; lane < LANES; lane++)
            memcpy(&message[half * LANES + lane], blocks[lane] + half * sizeof(vector), sizeof(vector));
        transpose(message + half * LANES);
    }
}

/* Chaining values of the chunks of two pages. */
INLINE void hash_chunks(const unsigned char *first, const unsigned char *second, unsigned char *values)
{
    vector state[8], message[16];
    const unsigned char *blocks[LANES];

    start(state);
    for (int block = 0; block < CHUNK / BLOCK; block++) {
        for (int lane = 0; lane < LANES; lane++)
            blocks[lane] = (lane < CHUNKS ? first : second) + lane % CHUNKS * CHUNK + block * BLOCK;
        load(message, blocks);
        compress(state, message, (vector){0, 1, 2, 3, 0, 1, 2, 3},
                 (block == 0 ? CHUNK_START : 0) | (block == CHUNK / BLOCK - 1 ? CHUNK_END : 0));
    }
    transpose(state);
    memcpy(values, state, sizeof(state));
}

/* Chaining values of LANES parents, from those of their children. */
INLINE void hash_parents(const unsigned char *children, uint32_t flags, unsigned char *values)
{
    vector state[8], message[16];
    const unsigned char *blocks[LANES];

    for (int lane = 0; lane < LANES; lane++)
        blocks[lane] = children + lane * BLOCK;
    load(message, blocks);
    start(state);
    compress(state, message, (vector){0}, PARENT | flags);
    transpose(state);
    memcpy(values, state, sizeof(state));
}

__attribute__((target_clones("arch=x86-64-v4", "avx2", "default"))) static void
hash_batch(const unsigned char *const pages[BATCH], unsigned char *hashes)
{
    unsigned char chunks[BATCH * CHUNKS * 32], parents[BATCH * 2 * 32], roots[BATCH * 32];

    for (int i = 0; i < BATCH; i += 2)
        hash_chunks(pages[i], pages[i + 1], chunks + i * CHUNKS * 32);
    hash_parents(chunks, 0, parents);
    hash_parents(chunks + LANES * BLOCK, 0, parents + LANES * 32);
    hash_parents(parents, ROOT, roots);
    for (int i = 0; i < BATCH; i++)
        memcpy(hashes + i * HASH, roots + i * 32, HASH);
}

void crd_pages_hash(const void *content, size_t n, unsigned char *hashes)
{
    const unsigned char *pages[BATCH];
    unsigned char found[BATCH * HASH];

    for (size_t at = 0; at < n; at += BATCH) {
        size_t many = n - at < BATCH ? n - at : BATCH;
        for (size_t i = 0; i < BATCH; i++)
            pages[i] = (const unsigned char *)content + (at + (i < many ? i : many - 1)) * PAGE;
        hash_batch(pages, found);
        memcpy(hashes + at * HASH, found, many * HASH);
    }
}

struct entry {
    uint64_t hash[2];
    uint64_t number;
};

struct crd_page_index {
    struct entry *entries;
    unsigned char *used;
    size_t capacity, n; /* a power of two, at most half of it used */
    size_t limit;
};

struct crd_page_index *crd_page_index_new(size_t limit)
{
    struct crd_page_index *index = calloc(1, sizeof(*index));

    if (index)
        index->limit = limit;
    return index;
}

void crd_page_index_free(struct crd_page_index *index)
{
    if (!index)
        return;
    free(index->entries);
    free(index->used);
    free(index);
}

/* Where a hash is, or belongs. */
static size_t find(const struct crd_page_index *index, const uint64_t hash[2])
{
    size_t at = hash[0] & (index->capacity - 1);

    while (index->used[at] && memcmp(index->entries[at].hash, hash, HASH))
        at = (at + 1) & (index->capacity - 1);
    return at;
}

static void put(struct crd_page_index *index, size_t at, const uint64_t hash[2], uint64_t number)
{
    index->entries[at] = (struct entry){{hash[0], hash[1]}, number};
    index->used[at] = 1;
    index->n++;
}

static int make_room(struct crd_page_index *index, size_t more, struct crd_error *err)
{
    struct crd_page_index grown = {.capacity = index->capacity ? index->capacity : 1024, .limit = index->limit};
    size_t wanted = index->n + more < index->limit ? index->n + more : index->limit;

    while (grown.capacity < 2 * wanted)
        grown.capacity *= 2;
    if (grown.capacity == index->capacity)
        return 0;
    grown.entries = malloc(grown.capacity * sizeof(struct entry));
    grown.used = calloc(grown.capacity, 1);
    if (!grown.entries || !grown.used) {
        free(grown.entries);
        free(grown.used);
        errno = ENOMEM;
        return crd_fail(err, "grow the page index", 0, 0);
    }
    for (size_t i = 0; i < index->capacity; i++)
        if (index->used[i])
            put(&grown, find(&grown, index->entries[i].hash), index->entries[i].hash, index->entries[i].number);
    free(index->entries);
    free(index->used);
    *index = grown;
    return 0;
}

int crd_page_index_learn(struct crd_page_index *index, const unsigned char *hashes, const uint64_t *numbers, size_t n,
                         struct crd_error *err)
{
    if (make_room(index, n, err))
        return -1;
    for (size_t i = 0; i < n && index->n < index->limit; i++) {
        uint64_t hash[2];
        memcpy(hash, hashes + i * HASH, HASH);
        size_t at = find(index, hash);
        if (!index->used[at])
            put(index, at, hash, numbers[i]);
    }
    return 0;
}

int crd_page_index_add(struct crd_page_index *index, const void *pages, size_t n, uint64_t next_number,
                       unsigned char *hashes, uint64_t *numbers, unsigned char *fresh, size_t *n_fresh,
                       struct crd_error *err)
{
    if (make_room(index, n, err))
        return -1;
    crd_pages_hash(pages, n, hashes);
    *n_fresh = 0;
    for (size_t i = 0; i < n; i++) {
        uint64_t hash[2];
        memcpy(hash, hashes + i * HASH, HASH);
        size_t at = find(index, hash);
        fresh[i] = !index->used[at];
        numbers[i] = fresh[i] ? next_number + (*n_fresh)++ : index->entries[at].number;
        if (fresh[i] && index->n < index->limit)
            put(index, at, hash, numbers[i]);
    }
    return 0;
}
