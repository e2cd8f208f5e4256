/*
 * System V shared memory: segments with a key, without one, and one that is removed while it is attached; attached twice,
 * read-only, in part only, and in a child, which plays with its parent through one of them.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, ODD_BYTES = 3 * PAGE + 77, BIG_PAGES = 64, MODE = 0640 };

struct game {
	volatile uint64_t ball;
	volatile uint64_t returned;
	volatile int end;
};

static int keyed, removed, big;
static key_t key;
static unsigned char *first, *second, *odd, *part;
static const unsigned char *readable;
static struct game *game;
static int keyed_attached, big_attached;

static void *attach(int id, int flags)
{
	return MUST(shmat(id, NULL, flags));
}

static struct shmid_ds status(int id)
{
	struct shmid_ds found = {0};
	EXPECT(shmctl(id, IPC_STAT, &found) == 0, "segment %d: %s", id, strerror(errno));
	return found;
}

static void play(void)
{
	MUST(prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0));
	while (!game->end) {
		if (game->returned != game->ball)
			game->returned = game->ball;
		victim_rest();
	}
	_exit(strcmp((char *)first, "in the keyed one") == 0 ? 0 : 1);
}

static void make(void)
{
	key = 0x43520000 | (getpid() & 0xffff);
	keyed = MUST(shmget(key, 2 * PAGE, IPC_CREAT | IPC_EXCL | MODE));
	removed = MUST(shmget(IPC_PRIVATE, ODD_BYTES, IPC_CREAT | 0600));
	big = MUST(shmget(IPC_PRIVATE, BIG_PAGES * PAGE, IPC_CREAT | 0600));
	first = attach(keyed, 0);
	second = attach(keyed, 0);
	readable = attach(keyed, SHM_RDONLY);
	odd = attach(removed, 0);
	MUST(shmctl(removed, IPC_RMID, NULL));
	part = attach(big, 0);
	MUST(munmap(part, 10 * PAGE));
	MUST(munmap(part + 20 * PAGE, (BIG_PAGES - 20) * PAGE));
	part += 10 * PAGE;
	strcpy((char *)first, "in the keyed one");
	memset(odd, 'o', ODD_BYTES);
	strcpy((char *)part, "in a part");
	game = (struct game *)(part + PAGE);
	keyed_attached = (int)status(keyed).shm_nattch;
	big_attached = (int)status(big).shm_nattch;
}

static void check(void)
{
	struct shmid_ds found = status(keyed);
	EXPECT(shmget(key, 0, 0) == keyed, "the key leads to another segment");
	EXPECT((found.shm_perm.mode & 0777) == MODE && found.shm_segsz == 2 * PAGE, "mode or size changed");
	EXPECT((int)found.shm_nattch == 2 * keyed_attached, "it is attached %d times", (int)found.shm_nattch);
	EXPECT(strcmp((char *)first, "in the keyed one") == 0, "the content is \"%.30s\"", first);
	first[100] = 'x';
	EXPECT(second[100] == 'x' && readable[100] == 'x', "the areas are not the same memory");
	EXPECT(mprotect((void *)(uintptr_t)readable, PAGE, PROT_READ | PROT_WRITE) == -1, "what was read-only can be written");
	EXPECT((status(removed).shm_perm.mode & SHM_DEST) && status(removed).shm_segsz == ODD_BYTES, "it is not removed");
	for (int at = 0; at < ODD_BYTES; at++)
		EXPECT(odd[at] == 'o', "byte %d is another one", at);
	EXPECT(strcmp((char *)part, "in a part") == 0, "the part has another content");
	EXPECT((int)status(big).shm_nattch == 2 * big_attached, "the large one is attached %d times", (int)status(big).shm_nattch);
	EXPECT(shmdt(second) == 0, "it cannot be detached: %s", strerror(errno));
}

int main(int argc, char **argv)
{
	victim_begin(argc, argv);
	make();
	pid_t child = MUST(fork());
	if (child == 0)
		play();
	victim_ready();
	while (!victim_asked()) {
		if (game->returned == game->ball)
			game->ball++;
		victim_rest();
	}
	uint64_t ball = game->ball;
	EXPECT(victim_reaches(&game->returned, ball), "the child does not play");
	EXPECT(ball > 1, "there was no game");
	check();
	game->end = 1;
	int how = -1;
	EXPECT(waitpid(child, &how, 0) == child && how == 0, "the child ended with %#x", (unsigned)how);
	EXPECT(shmdt(odd) == 0 && shmctl(removed, IPC_STAT, &(struct shmid_ds){0}) == -1, "the removed one is still there");
	MUST(shmctl(keyed, IPC_RMID, NULL));
	MUST(shmctl(big, IPC_RMID, NULL));
	return victim_end();
}
