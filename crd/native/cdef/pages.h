/* The first 16 bytes of the BLAKE3 of each 4 KiB page. */
void crd_pages_hash(const void *pages, size_t n, unsigned char *hashes);

/* Up to limit pages by their hash, each with a number of the caller's. Not for several threads at once. */
struct crd_page_index *crd_page_index_new(size_t limit);
void crd_page_index_free(struct crd_page_index *index);

/* Hashed pages that are known already; of equal ones the first counts. Fails only with ENOMEM. */
int crd_page_index_learn(struct crd_page_index *index, const unsigned char *hashes, const uint64_t *numbers, size_t n,
                         struct crd_error *err);

/* The numbers of pages, and their hashes. A page that is not known gets the next number, and is fresh; it is known from
 * then on unless there is no room for it. ENOMEM. */
int crd_page_index_add(struct crd_page_index *index, const void *pages, size_t n, uint64_t next_number,
                       unsigned char *hashes, uint64_t *numbers, unsigned char *fresh, size_t *n_fresh,
                       struct crd_error *err);
