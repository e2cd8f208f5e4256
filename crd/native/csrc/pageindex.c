/* An index of pages by their hashes: open addressing, at most half full. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"

enum { PAGE = 4096, HASH = 16 };

struct entry {
    uint64_t hash[2];
    uint64_t after; /* the number of the page, plus 1; 0: free */
};

struct crd_page_index {
    struct entry *entries;
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
    free(index);
}

static struct entry *first_place(const struct crd_page_index *index, const unsigned char *hash)
{
    uint64_t word;

    memcpy(&word, hash, sizeof(word));
    return index->entries + (word & (index->capacity - 1));
}

/* Where a hash is, or belongs. */
static struct entry *find(const struct crd_page_index *index, const unsigned char *hash)
{
    struct entry *entry = first_place(index, hash);

    while (entry->after && memcmp(entry->hash, hash, HASH))
        if (++entry == index->entries + index->capacity)
            entry = index->entries;
    return entry;
}

static void put(struct crd_page_index *index, struct entry *entry, const unsigned char *hash, uint64_t number)
{
    memcpy(entry->hash, hash, HASH);
    entry->after = number + 1;
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
    grown.entries = calloc(grown.capacity, sizeof(struct entry));
    if (!grown.entries) {
        errno = ENOMEM;
        return crd_fail(err, "grow the page index", 0, 0);
    }
    for (struct entry *entry = index->entries; entry < index->entries + index->capacity; entry++)
        if (entry->after) {
            const unsigned char *hash = (const unsigned char *)entry->hash;
            put(&grown, find(&grown, hash), hash, entry->after - 1);
        }
    free(index->entries);
    *index = grown;
    return 0;
}

int crd_page_index_learn(struct crd_page_index *index, const unsigned char *hashes, const uint64_t *numbers, size_t n,
                         struct crd_error *err)
{
    if (make_room(index, n, err))
        return -1;
    for (size_t i = 0; i < n && index->n < index->limit; i++) {
        struct entry *entry = find(index, hashes + i * HASH);
        if (!entry->after)
            put(index, entry, hashes + i * HASH, numbers[i]);
    }
    return 0;
}

int crd_page_index_add(struct crd_page_index *index, unsigned char *pages, size_t n, const unsigned char *key,
                       uint64_t next_number, unsigned char *hashes, unsigned char *fresh_hashes,
                       uint64_t *numbers, size_t *n_fresh, struct crd_error *err)
{
    size_t fresh = 0;

    if (make_room(index, n, err))
        return -1;
    crd_pages_hash(pages, n, key, hashes);
    for (size_t i = 0; i < n; i++)
        __builtin_prefetch(first_place(index, hashes + i * HASH));
    for (size_t i = 0; i < n; i++) {
        struct entry *entry = find(index, hashes + i * HASH);
        numbers[i] = entry->after ? entry->after - 1 : next_number + fresh;
        if (entry->after)
            continue;
        if (index->n < index->limit)
            put(index, entry, hashes + i * HASH, numbers[i]);
        memcpy(fresh_hashes + fresh * HASH, hashes + i * HASH, HASH);
        if (fresh < i)
            memcpy(pages + fresh * PAGE, pages + i * PAGE, PAGE);
        fresh++;
    }
    *n_fresh = fresh;
    return 0;
}

int crd_page_hashes_gather(const uint64_t *numbers, size_t n, const struct crd_pack_hashes *packs, size_t n_packs,
                           unsigned char *hashes)
{
    for (size_t i = 0; i < n; i++) {
        uint64_t pack = numbers[i] >> 32, page = numbers[i] & UINT32_MAX;
        if (pack >= n_packs || page >= packs[pack].n)
            return -1;
        memcpy(hashes + i * HASH, packs[pack].hashes + page * HASH, HASH);
    }
    return 0;
}
