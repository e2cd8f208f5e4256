/* Hashes of 16 bytes of pages of 4 KiB, by a key of 4152 bytes: 4120 for NH, 32 for BLAKE3. */
void crd_pages_hash(const void *pages, size_t n, const unsigned char *key, unsigned char *hashes);

/* Up to limit pages by their hash, each with a number of the caller's. Not for several threads at once. */
struct crd_page_index *crd_page_index_new(size_t limit);
void crd_page_index_free(struct crd_page_index *index);

/* Hashed pages that are known already; of equal ones the first counts. Fails only with ENOMEM. */
int crd_page_index_learn(struct crd_page_index *index, const unsigned char *hashes, const uint64_t *numbers, size_t n,
                         struct crd_error *err);

/* The numbers of pages. Those that are not known, the fresh ones, get the next numbers, and are known from then on unless
 * there is no room for them; they are moved to the front of the pages, and their hashes are told once more by
 * themselves. ENOMEM. */
int crd_page_index_add(struct crd_page_index *index, unsigned char *pages, size_t n, const unsigned char *key,
                       uint64_t next_number, unsigned char *hashes, unsigned char *fresh_hashes,
                       uint64_t *numbers, size_t *n_fresh, struct crd_error *err);

/* The hashes of the pages of a pack. */
struct crd_pack_hashes {
    const unsigned char *hashes;
    size_t n;
};

/* The hashes of pages by their numbers, whose upper 32 bits say which pack; -1 if there is no such page. */
int crd_page_hashes_gather(const uint64_t *numbers, size_t n, const struct crd_pack_hashes *packs, size_t n_packs,
                           unsigned char *hashes);
