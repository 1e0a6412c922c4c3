/* Guest workload for migration experiments: static binary, runs in an initramfs.
 *   wl hb PERIOD_MS              heartbeat lines "HB n ms" on stdout
 *   wl churn SIZE_MB RATE_MBPS   self-checking memory churner (RATE 0: fill once, verify only)
 *   wl delta SIZE_MB RATE_MBPS   the same with eight bytes written per page and generation, so that pages differ little
 *   wl fillfree SIZE_MB          fill anonymous memory with garbage, then exit (free pages hold garbage)
 *   wl build DIR MB_S            compile-like: short-lived processes + tmpfs files
 * Every 4 KiB page of the churner holds words f(page, generation, i); the generations live in a
 * separate array, so a lost, stale, torn or misplaced page shows as BAD.                       */
#include <stdio.h>
#include <stdlib.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>
#include <time.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
static uint64_t now_ms(void){struct timespec t;clock_gettime(CLOCK_MONOTONIC,&t);return t.tv_sec*1000ull+t.tv_nsec/1000000;}
static inline uint64_t mix(uint64_t z){z=(z^(z>>30))*0xbf58476d1ce4e5b9ull;z=(z^(z>>27))*0x94d049bb133111ebull;return z^(z>>31);}
static void fill(uint64_t*p,uint64_t pg,uint64_t gen){uint64_t s=mix(pg*0x9e3779b97f4a7c15ull+gen)|1,v=s;for(int i=0;i<512;i++){p[i]=v;v=v*6364136223846793005ull+s;}}
static int check(const uint64_t*p,uint64_t pg,uint64_t gen){uint64_t s=mix(pg*0x9e3779b97f4a7c15ull+gen)|1,v=s;uint64_t d=0;for(int i=0;i<512;i++){d|=p[i]^v;v=v*6364136223846793005ull+s;}return d==0;}
/* delta: the word of every generation stands where the next 511 do not write; the last eight are checked. */
static uint64_t word(uint64_t pg,uint64_t gen){return mix(pg*0x9e3779b97f4a7c15ull+gen);}
static void put(uint64_t*p,uint64_t pg,uint64_t gen){if(gen==1)fill(p,pg,1);p[gen*37%512]=word(pg,gen);}
static int holds(const uint64_t*p,uint64_t pg,uint64_t gen){for(uint64_t g=gen;g>0&&g+8>gen;g--)if(p[g*37%512]!=word(pg,g))return 0;return 1;}
static void say(const char*b){int n=strlen(b);while(n>0){int r=write(1,b,n);if(r<=0)break;b+=r;n-=r;}}
int main(int c,char**v){char b[256];
 if(c<2)return 1;
 if(!strcmp(v[1],"hb")){int ms=atoi(v[2]);uint64_t n=0;for(;;){snprintf(b,sizeof b,"HB %llu %llu\n",(unsigned long long)n++,(unsigned long long)now_ms());say(b);usleep(ms*1000);}}
 if(!strcmp(v[1],"fillfree")){uint64_t mb=atoll(v[2]);uint64_t np=mb*256;uint64_t*m=mmap(0,np*4096,PROT_READ|PROT_WRITE,MAP_PRIVATE|MAP_ANONYMOUS,-1,0);if(m==MAP_FAILED){say("MMAPFAIL\n");return 1;}
   for(uint64_t i=0;i<np;i++)fill(m+i*512,i,7);munmap(m,np*4096);snprintf(b,sizeof b,"FILLFREE done %llu MB\n",(unsigned long long)mb);say(b);return 0;}
 if(!strcmp(v[1],"churn")||!strcmp(v[1],"delta")){
   void(*const write_page)(uint64_t*,uint64_t,uint64_t)=strcmp(v[1],"delta")?fill:put;
   int(*const check_page)(const uint64_t*,uint64_t,uint64_t)=strcmp(v[1],"delta")?check:holds;
  uint64_t mb=atoll(v[2]);double rate=atof(v[3]);uint64_t np=mb*256;
   uint64_t*m=mmap(0,np*4096,PROT_READ|PROT_WRITE,MAP_PRIVATE|MAP_ANONYMOUS,-1,0);uint32_t*g=calloc(np,4);if(m==MAP_FAILED||!g){say("MMAPFAIL\n");return 1;}
   for(uint64_t i=0;i<np;i++){g[i]=1;write_page(m+i*512,i,1);}
   snprintf(b,sizeof b,"CHURN ready %llu MB\n",(unsigned long long)mb);say(b);
   uint64_t t0=now_ms(),w=0,chk=0,bad=0,last=t0,vp=0,rng=88172645463325252ull,sumg=np,pass=0;
   for(;;){
     uint64_t t=now_ms();
     double want=rate*256.0*(t-t0)/1000.0; /* pages that should have been written */
     int burst=0;
     if(want>w+4096)w=(uint64_t)want-4096; /* after a pause: do not catch up for ever */
     while(w<want&&burst<256){rng^=rng<<13;rng^=rng>>7;rng^=rng<<17;uint64_t p=rng%np;
        if(!check_page(m+p*512,p,g[p])){bad++;snprintf(b,sizeof b,"BAD page %llu gen %u\n",(unsigned long long)p,g[p]);say(b);}
        g[p]++;sumg++;write_page(m+p*512,p,g[p]);w++;burst++;}
     for(int k=0;k<64;k++){if(!check_page(m+vp*512,vp,g[vp])){bad++;snprintf(b,sizeof b,"BAD page %llu gen %u\n",(unsigned long long)vp,g[vp]);say(b);}
        chk++;if(++vp==np){vp=0;pass++;uint64_t s=0;for(uint64_t i=0;i<np;i++)s+=g[i];if(s!=sumg){bad++;say("BAD gensum\n");}}}
     if(t-last>=500){snprintf(b,sizeof b,"CK t=%llu written=%llu checked=%llu passes=%llu bad=%llu\n",(unsigned long long)t,(unsigned long long)w,(unsigned long long)chk,(unsigned long long)pass,(unsigned long long)bad);say(b);last=t;}
     if(rate<=0||burst<256)usleep(1000);
   }}
 if(!strcmp(v[1],"build")){double mbs=atof(v[3]);uint64_t n=0,bytes=0,t0=now_ms(),last=t0;char fn[128];
   for(;;n++){pid_t p=fork();if(!p){size_t sz=(4+n%13)<<20;uint64_t*m=malloc(sz);for(size_t i=0;i<sz/4096;i++)fill(m+i*512,i,n);
        snprintf(fn,sizeof fn,"%s/o%llu",v[2],(unsigned long long)(n%40));int fd=open(fn,O_CREAT|O_TRUNC|O_WRONLY,0644);if(fd>=0){write(fd,m,sz/8);close(fd);}_exit(0);}
     if(p<0){say("FORKFAIL\n");return 1;}
     waitpid(p,0,0);bytes+=(4+n%13)<<20;uint64_t t=now_ms();
     if(t-last>=500){snprintf(b,sizeof b,"BUILD t=%llu jobs=%llu mb=%llu\n",(unsigned long long)t,(unsigned long long)n,(unsigned long long)(bytes>>20));say(b);last=t;}
     double ahead=bytes/1048576.0/mbs*1000.0-(t-t0);if(ahead>0)usleep(ahead*1000);
   }}
 return 1;}
