/*
 * Keyed hashes of pages: NH (Black, Halevi, Krawczyk, Krovetz, Rogaway, "UMAC", CRYPTO 1999, sections 4 and 5) makes 32
 * bytes of a page by four passes under one key, shifted by 8 bytes from pass to pass; keyed BLAKE3 (its specification,
 * sections 2.2 to 2.5; one block) makes 16 bytes of these. crd/native/pages.py says what that is good for.
 */
#include <immintrin.h>
#include <string.h>

#include "core.h"

#define INLINE static inline __attribute__((always_inline))

enum { PAGE = 4096, HASH = 16, PASSES = 4, SHIFT = 8, LANES = 8 };
enum { NH_KEY = PAGE + (PASSES - 1) * SHIFT, NH_HASH = PASSES * 8 };
enum { CHUNK_START = 1, CHUNK_END = 2, ROOT = 8, KEYED = 16 };

/* NH adds the halves of each 64-bit word of page and key, multiplies both sums, and adds up the products. */
#define DEFINE_NH(name, isa, vector, load, add32, add64, shift, multiply)                                              \
    __attribute__((target(isa))) static void name(const unsigned char *page, const unsigned char *key,                 \
                                                  unsigned char hash[NH_HASH])                                         \
    {                                                                                                                  \
        vector sums[PASSES] = {0};                                                                                     \
        for (size_t at = 0; at < PAGE; at += sizeof(vector)) {                                                         \
            vector words = load((const void *)(page + at));                                                            \
            _Pragma("GCC unroll 4") for (int pass = 0; pass < PASSES; pass++) {                                        \
                vector keyed = add32(words, load((const void *)(key + at + pass * SHIFT)));                            \
                sums[pass] = add64(sums[pass], multiply(keyed, shift(keyed, 32)));                                     \
            }                                                                                                          \
        }                                                                                                              \
        for (int pass = 0; pass < PASSES; pass++) {                                                                    \
            uint64_t lanes[sizeof(vector) / 8], sum = 0;                                                               \
            memcpy(lanes, &sums[pass], sizeof(vector));                                                                \
            for (size_t lane = 0; lane < sizeof(vector) / 8; lane++)                                                   \
                sum += lanes[lane];                                                                                    \
            memcpy(hash + 8 * pass, &sum, 8);                                                                          \
        }                                                                                                              \
    }

DEFINE_NH(nh_sse2, "sse2", __m128i, _mm_loadu_si128, _mm_add_epi32, _mm_add_epi64, _mm_srli_epi64, _mm_mul_epu32)
DEFINE_NH(nh_avx2, "avx2", __m256i, _mm256_loadu_si256, _mm256_add_epi32, _mm256_add_epi64, _mm256_srli_epi64,
          _mm256_mul_epu32)

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

/* Keyed BLAKE3 of messages of 32 bytes, one a lane. */
__attribute__((target_clones("avx2", "default"))) static void
finish(const unsigned char messages[LANES][NH_HASH], const uint32_t key[8], unsigned char hashes[LANES][HASH])
{
    vector message[16] = {0}, v[16], zero = {0};

    for (int lane = 0; lane < LANES; lane++)
        for (int word = 0; word < NH_HASH / 4; word++) {
            uint32_t value;
            memcpy(&value, messages[lane] + 4 * word, 4);
            message[word][lane] = value;
        }
    for (int i = 0; i < 8; i++)
        v[i] = zero + key[i];
    for (int i = 0; i < 4; i++)
        v[8 + i] = zero + IV[i];
    v[12] = v[13] = zero;
    v[14] = zero + NH_HASH;
    v[15] = zero + (CHUNK_START | CHUNK_END | ROOT | KEYED);
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
    for (int word = 0; word < HASH / 4; word++) {
        vector found = v[word] ^ v[8 + word];
        for (int lane = 0; lane < LANES; lane++) {
            uint32_t value = found[lane];
            memcpy(hashes[lane] + 4 * word, &value, 4);
        }
    }
}

void crd_pages_hash(const void *content, size_t n, const unsigned char *key, unsigned char *hashes)
{
    void (*nh)(const unsigned char *, const unsigned char *, unsigned char *) =
        __builtin_cpu_supports("avx2") ? nh_avx2 : nh_sse2; /* AVX-512 is no faster, and slows down zstd after it */
    unsigned char messages[LANES][NH_HASH] = {0}, found[LANES][HASH];
    uint32_t blake3_key[8];

    memcpy(blake3_key, key + NH_KEY, sizeof(blake3_key));
    for (size_t at = 0; at < n; at += LANES) {
        size_t many = n - at < LANES ? n - at : LANES;
        for (size_t i = 0; i < many; i++)
            nh((const unsigned char *)content + (at + i) * PAGE, key, messages[i]);
        finish(messages, blake3_key, found);
        memcpy(hashes + at * HASH, found, many * HASH);
    }
}
