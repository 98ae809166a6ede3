// fiber runtime for cuda_cpu.h (prototype, x86-64 linux)
#include "emu_rt.h"
#include <sys/mman.h>
#include <link.h>
#include <dlfcn.h>
#include <map>
#include <string>
#include <vector>
#include <thread>
#include <atomic>
#include <mutex>
#include <cstdlib>
#include <cstdarg>
extern "C" void emu_switch(void** save, void* load);
asm(R"(
.text
.globl emu_switch
.hidden emu_switch
.type emu_switch,@function
emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmp *%rcx
)");
namespace {
constexpr size_t STK = emu::STACK_BYTES; static_assert(sizeof(emu::Thread)<=128); enum { A_ADD=emu::ADD, A_EXCH=emu::EXCHANGE, A_CAS=emu::CAS, A_AND=emu::AND, A_OR=emu::OR, A_XOR=emu::XOR, A_MIN=emu::MIN_S, A_MAX=emu::MAX_S, A_UMIN=emu::MIN_U, A_UMAX=emu::MAX_U, A_FADD=emu::ADD_F }; constexpr unsigned DYN_MAX=228*1024; constexpr int MAXT=1024;
struct Cp { void* s; const void* g; int n, src; int group; };
struct Fiber { emu::Thread& th(); unsigned linear;  void* sp; int state; unsigned wep; int group; std::vector<Cp> cps; };
enum { RUN, BAR, WARP, DONE };
struct Warp { unsigned live; struct Slot { unsigned mask, arrived; int kind; void* lanes[32]; } s[4]; };
struct Cell { uint64_t we, re; uint16_t wt, ww, rt, rw; };
struct Tma { unsigned char* s; const unsigned char* m; void* bar; int x,y,z; }; struct Wg { float* d[128]; uint64_t da,db; int n, arrived, mn, acc, regs; uint32_t a[128][4]; };
struct MBar { uint32_t phase:1, exp:15, pend:15, valid:1; int32_t tx; }; static_assert(sizeof(MBar)==8);
struct Exec {
  Fiber* f=nullptr; unsigned char* stk=nullptr; int n=0, live=0, atbar=0; uint16_t q[MAXT*2]; unsigned qh=0, qt=0; Warp w[32]; void* main_sp=nullptr; Fiber* cur=nullptr;
  EmuInvoke inv=nullptr; void** args=nullptr; unsigned char* dyn=nullptr; unsigned dyn_n=0; unsigned char* tls=nullptr; size_t tls_n=0; uint64_t epoch=1, bstart=1, lstart=1; Cell* sh_dyn=nullptr; Cell* sh_tls=nullptr; uint64_t rng=1; bool active=false; std::vector<Tma> tma; std::vector<std::pair<int,Wg>> wgq[8]; int wgn[8]={}, wgg[8]={}; uint64_t spins=0; const char* kname="";
  void init(){ if(f) return; f=new Fiber[MAXT]; stk=(unsigned char*)mmap(0,STK*(MAXT+1),PROT_READ|PROT_WRITE,MAP_PRIVATE|MAP_ANONYMOUS|MAP_NORESERVE,-1,0); stk=(unsigned char*)(((uintptr_t)stk+STK-1)&~(STK-1));
    dyn=(unsigned char*)mmap(0,DYN_MAX+4096,PROT_READ|PROT_WRITE,MAP_PRIVATE|MAP_ANONYMOUS,-1,0); sh_dyn=(Cell*)mmap(0,sizeof(Cell)*(DYN_MAX/2),PROT_READ|PROT_WRITE,MAP_PRIVATE|MAP_ANONYMOUS|MAP_NORESERVE,-1,0); }
};
static thread_local Exec* tl_ex; struct NB { int id, n, gen; }; static thread_local NB t_nb[16];
static inline emu::Thread& TH(Exec*e,int i){ return *(emu::Thread*)(e->stk+(size_t)(i+1)*STK-128); }
emu::Thread& Fiber::th(){ return TH(tl_ex,linear); }
int g_sched=0; uint64_t g_seed=1; int g_cp=0; int g_check=1; int g_threads=1; 
struct Alloc { size_t n; Cell* sh; };
std::map<uintptr_t,Alloc> g_alloc; uintptr_t g_ro_lo,g_ro_hi; 
std::mutex g_emu; std::string g_err; std::atomic<bool> g_fail{false}; uint64_t g_counter[8];
uint64_t xr(Exec*e){ e->rng^=e->rng<<13; e->rng^=e->rng>>7; e->rng^=e->rng<<17; return e->rng; }
void next(Exec* e);
[[gnu::noinline]] void fail(const char* fmt, ...){
  Exec* e=tl_ex; char b[600]; va_list a; va_start(a,fmt); int k=vsnprintf(b,sizeof b,fmt,a); va_end(a);
  if(e&&e->cur) snprintf(b+k,sizeof b-k," [kernel %s block (%u,%u,%u) thread %u]",e->kname,e->cur->th().block_index.x,e->cur->th().block_index.y,e->cur->th().block_index.z,e->cur->th().linear);
  { std::lock_guard<std::mutex> l(g_emu); if(g_err.empty()) g_err=b; } g_fail=true;
}
[[noreturn]] void bail(Exec*e){ void* d; emu_switch(&d,e->main_sp); __builtin_unreachable(); }
inline void push(Exec*e,int i){ e->q[e->qt++ & (2*MAXT-1)]=(uint16_t)i; }
inline Fiber* pop(Exec*e){ if(e->qh==e->qt) return nullptr; 
  if(g_sched==2){ unsigned c=e->qt-e->qh, r=e->qh+(unsigned)(xr(e)%c); std::swap(e->q[e->qh&(2*MAXT-1)],e->q[r&(2*MAXT-1)]); }
  else if(g_sched==1){ return &e->f[e->q[--e->qt & (2*MAXT-1)]]; }
  return &e->f[e->q[e->qh++ & (2*MAXT-1)]]; }
inline void go(Exec*e,Fiber*me,Fiber*to){ e->cur=to; emu_switch(&me->sp,to->sp); }
void next(Exec* e){ Fiber* me=e->cur; Fiber* t=pop(e);
  if(!t){ int b=0,w=0; for(int i=0;i<e->n;i++){ b+=e->f[i].state==BAR; w+=e->f[i].state==WARP; }
    fail("deadlock: %d threads wait at __syncthreads, %d at a warp collective, %d exited",b,w,e->n-e->live); emu_switch(&me->sp,e->main_sp); return; }
  if(t!=me) go(e,me,t); }
void release_bar(Exec*e){ e->atbar=0; e->epoch++; for(int i=0;i<e->n;i++) if(e->f[i].state==BAR){ e->f[i].state=RUN; if(&e->f[i]!=e->cur) push(e,i); } }
void cp_do(Fiber*f,Cp&c){ memcpy(c.s,c.g,c.src); if(c.src<c.n) memset((char*)c.s+c.src,0,c.n-c.src); emu_access(c.s,c.n,1);} 
void cp_flush(Fiber*f,int keep){ size_t k=0; for(auto&c:f->cps){ if(c.group < f->group-keep) cp_do(f,c); else f->cps[k++]=c; } f->cps.resize(k); }
extern "C" void emu_fiber_main(){ Exec*e=tl_ex; e->inv(e->args); Fiber*me=e->cur; if(!me->cps.empty()){ fail("kernel exits with %zu cp.async not waited for",me->cps.size()); }
  me->state=DONE; e->live--; Warp&w=e->w[me->th().warp]; w.live&=~(1u<<me->th().lane); for(auto&s:w.s) if(s.mask&&(s.mask>>me->th().lane&1)) fail("thread exits while lanes of mask %08x wait for it",s.mask);
  if(e->live==0||g_fail){ bail(e); }
  if(e->atbar==e->live){ /* exited threads count as arrived */ release_bar(e); }
  next(e); __builtin_unreachable(); }
size_t tls_range(void** p){ struct R{void*d;size_t n;uintptr_t pc;} r{nullptr,0,(uintptr_t)&tls_range};
  dl_iterate_phdr([](dl_phdr_info*i,size_t,void*u){ R*r=(R*)u; bool in=false; size_t n=0; for(int k=0;k<i->dlpi_phnum;k++){ auto&h=i->dlpi_phdr[k]; if(h.p_type==PT_LOAD){ uintptr_t lo=i->dlpi_addr+h.p_vaddr; if(r->pc>=lo&&r->pc<lo+h.p_memsz) in=true; } if(h.p_type==PT_TLS) n=h.p_memsz; }
    if(in){ r->d=i->dlpi_tls_data; r->n=n; for(int k=0;k<i->dlpi_phnum;k++){ auto&h=i->dlpi_phdr[k]; if(h.p_type==PT_LOAD){ uintptr_t lo=i->dlpi_addr+h.p_vaddr; if(!g_ro_lo||lo<g_ro_lo) g_ro_lo=lo; if(lo+h.p_memsz>g_ro_hi) g_ro_hi=lo+h.p_memsz; } } return 1; } return 0; },&r); *p=r.d; return r.n; }
void poison_shared(Exec*e){ if(e->tls){ auto t=tl_ex; memset(e->tls,0xFF,e->tls_n); tl_ex=t; } if(e->dyn_n) memset(e->dyn,0xFF,e->dyn_n); }
void run_block(Exec*e,EmuK_*k,dim3 g,dim3 b,unsigned x,unsigned y,unsigned z){
  int n=b.x*b.y*b.z; e->n=e->live=n; e->atbar=0; e->qh=e->qt=0; e->epoch++; e->bstart=e->epoch; memset(e->w,0,sizeof(Warp)*((n+31)/32)); e->tma.clear(); for(auto&b:t_nb) b.n=0; for(int i=0;i<8;i++){ e->wgq[i].clear(); e->wgn[i]=e->wgg[i]=0; } e->spins=0;
  if(g_check) poison_shared(e);
  for(int i=0;i<n;i++){ Fiber&f=e->f[i]; f.linear=i; TH(e,i)={{(unsigned)i%b.x,(unsigned)i/b.x%b.y,(unsigned)i/(b.x*b.y)},{x,y,z},b,g,(unsigned)i&31,(unsigned)i>>5,(unsigned)i,e->dyn}; f.state=RUN; f.wep=0; f.group=0; f.cps.clear();
    void** sp=(void**)(e->stk+(size_t)(i+1)*STK-128-8); *sp=nullptr; *--sp=(void*)&emu_fiber_main; sp-=6; f.sp=sp; e->w[i>>5].live|=1u<<(i&31); push(e,i); }
  Fiber*t=pop(e); e->cur=t; e->active=true; emu_switch(&e->main_sp,t->sp); e->active=false; e->cur=nullptr; }
inline void conflict(Exec*e,const char*what,const void*p,unsigned pt,void*pc,bool global){ Dl_info di; size_t off=0; if(dladdr(pc,&di)) off=(char*)pc-(char*)di.dli_fbase; fail("DATA RACE (%s, %s memory %p, with thread %u) at +0x%zx",what,global?"global":"shared",p,pt,off); }
[[gnu::noinline]] void access_slow(Exec*e,uintptr_t a,unsigned n,int kind,void*pc){
  Fiber*me=e->cur; Cell*sh; bool global=false; 
  if(a-(uintptr_t)e->dyn<DYN_MAX){ if(a+n>(uintptr_t)e->dyn+e->dyn_n){ fail("OUT OF BOUNDS: dynamic shared memory offset %zu+%u of %u",a-(uintptr_t)e->dyn,n,e->dyn_n); return; } sh=e->sh_dyn+(a-(uintptr_t)e->dyn)/2; }
  else if(e->tls&&a-(uintptr_t)e->tls<e->tls_n){ if(a-(uintptr_t)&tl_ex<8) return; sh=e->sh_tls+(a-(uintptr_t)e->tls)/2; }
  else if(a-(uintptr_t)e->f<sizeof(Fiber)*MAXT || a-(uintptr_t)e<sizeof(Exec)) return;
  else { auto it=g_alloc.upper_bound(a); if(it==g_alloc.begin()||(--it,a+n>it->first+it->second.n)){ if(a>=g_ro_lo&&a+n<=g_ro_hi) return; if((char*)a>=(char*)e->args&&(char*)a<(char*)e->args+65536) return; Dl_info di; size_t off=0; if(dladdr(pc,&di)) off=(char*)pc-(char*)di.dli_fbase; fail("OUT OF BOUNDS: %s of %u bytes at %p at +0x%zx",kind?"write":"read",n,(void*)a,off); return; }
    global=true; if(!it->second.sh) it->second.sh=(Cell*)mmap(0,sizeof(Cell)*(it->second.n/2+8),PROT_READ|PROT_WRITE,MAP_PRIVATE|MAP_ANONYMOUS|MAP_NORESERVE,-1,0); sh=it->second.sh+(a-it->first)/2; }
  if(n<2) return; unsigned t=me->th().linear,w=t>>5; uint64_t ep=e->epoch;
  for(unsigned i=0;i<n/2;i++,sh++){
    if(!global&&kind==0&&sh->we<e->bstart){ Dl_info di; size_t off=0; if(dladdr(pc,&di)) off=(char*)pc-(char*)di.dli_fbase; fail("UNINITIALISED (or cp.async still pending) shared memory read at %p at +0x%zx",(void*)(a+2*i),off); return; }
    if(sh->we>=e->lstart && global && sh->we<e->bstart && !(kind==2&&sh->wt==0xFFFE)) return conflict(e,"another block wrote",(void*)a,sh->wt,pc,global);
    if(sh->we==ep && sh->wt!=t && !(kind==2&&sh->wt==0xFFFE) && !(sh->wt!=0xFFFE && (unsigned)(sh->wt>>5)==w && sh->ww<me->wep)) return conflict(e,kind==0?"read after write":"write after write",(void*)a,sh->wt,pc,global);
    if(kind!=0){ if(global && sh->re>=e->lstart && sh->re<e->bstart && sh->rt!=0xFFFD) return conflict(e,"another block read",(void*)a,sh->rt,pc,global);
      if(sh->re==ep && sh->rt!=t && !(sh->rt==0xFFFF? false : (unsigned)(sh->rt>>5)==w && sh->rw<me->wep)) return conflict(e,"write after read",(void*)a,sh->rt,pc,global);
      if(kind==3){ sh->we=0; continue; } sh->we=ep; sh->wt=kind==2?0xFFFE:(uint16_t)t; sh->ww=(uint16_t)me->wep; }
    else { if(sh->re!=ep){ sh->re=ep; sh->rt=(uint16_t)t; sh->rw=(uint16_t)me->wep; } else if(sh->rt!=t){ if(sh->rt!=0xFFFF&&(unsigned)(sh->rt>>5)==w){ sh->rt=(uint16_t)t; sh->rw=(uint16_t)me->wep; } else sh->rt=0xFFFF; } }
  } }
inline void access_(const void*p,unsigned n,int kind,void*pc,bool aligned){ Exec*e=tl_ex; if(!e||!e->active||g_fail) return; uintptr_t a=(uintptr_t)p; if(a-(uintptr_t)e->stk<STK*MAXT) return; if(aligned&&(a&(n-1))) { fail("MISALIGNED %u-byte access at %p",n,p); return; } access_slow(e,a,n,kind,pc); if(g_fail) bail(e); }
std::map<std::string,EmuK_>& reg(){ static std::map<std::string,EmuK_> m; return m; }
}
extern "C" {
void emu_register(const char*n,EmuInvoke f,int na,const unsigned*s){ EmuK_ k; k.name=strdup(n); k.inv=f; k.nargs=na; k.sizes=s; reg()[n]=k; }
EmuK_* emu_find(const char*n){ auto it=reg().find(n); return it==reg().end()?nullptr:&it->second; }
void emu_syncthreads(){ Exec*e=tl_ex; Fiber*me=e->cur; g_counter[0]++; if(++e->atbar==e->live){ me->state=BAR; release_bar(e); return; } me->state=BAR; next(e); }
void emu_fence(){} long long emu_clock(){ return 0; } void emu_trap(){ fail("__trap"); bail(tl_ex); } void emu_proxy_fence(){} void emu_tma_store_commit(){} void emu_tma_store_wait(int,int){}
static thread_local int t_red[3];
int emu_syncthreads_reduce(int p,int op){ Exec*e=tl_ex; emu_syncthreads(); if(e->cur->th().linear==0){ t_red[0]=0; t_red[1]=1; t_red[2]=0; } emu_syncthreads(); t_red[0]+=p!=0; t_red[1]&=p!=0; t_red[2]|=p!=0; emu_syncthreads(); return t_red[op]; }
void emu_yield();
static void nb_yield(Exec*e){ if(g_sched==1){ uint16_t me=(uint16_t)e->cur->linear; if(e->qh==e->qt) return; e->qh--; e->q[e->qh&(2*MAXT-1)]=me; next(e);} else emu_yield(); }
void emu_barrier(int id,int n,int wait){ Exec*e=tl_ex; NB&b=t_nb[id&15]; int g=b.gen; if(++b.n==n){ b.n=0; b.gen++; e->epoch++; e->spins=0; return; } if(wait) while(b.gen==g){ if(++e->spins>4000000){ fail("deadlock: thread waits at named barrier %d",id); bail(e);} nb_yield(e); } }
void emu_yield(){ Exec*e=tl_ex; if(e->qh==e->qt){ std::this_thread::yield(); return; } push(e,e->cur->th().linear); next(e); }
unsigned emu_activemask(){ Exec*e=tl_ex; return e->w[e->cur->th().warp].live; }
void emu_warp(int kind,unsigned mask,void*arg,void(*fn)(void**,unsigned)){
  Exec*e=tl_ex; Fiber*me=e->cur; Warp&w=e->w[me->th().warp]; unsigned bit=1u<<me->th().lane;
  if(!(mask&bit)){ fail("thread not in its own mask %08x",mask); bail(e); }
  if(mask!=0xffffffffu||w.live!=0xffffffffu){ if(mask&~w.live){ if(mask==0xffffffffu&&e->n<32) mask=w.live; else { fail("mask %08x names lanes that exited or do not exist (live %08x)",mask,w.live); bail(e);} } }
  Warp::Slot*s=nullptr; for(auto&c:w.s) if(c.mask==mask){ s=&c; break; } if(!s) for(auto&c:w.s) if(!c.mask){ s=&c; s->mask=mask; s->arrived=0; s->kind=kind; break; }
  if(!s){ fail("too many divergent warp collectives"); bail(e); }
  if(s->kind!=kind){ fail("divergent warp collective: kind %d meets %d",kind,s->kind); bail(e); }
  s->lanes[me->th().lane]=arg; s->arrived|=bit;
  if(s->arrived==mask){ if(fn) fn(s->lanes,mask); s->mask=0; if(kind==emu::SYNCWARP) for(unsigned m=mask;m;m&=m-1) e->f[me->th().warp*32+__builtin_ctz(m)].wep++; 
    for(unsigned m=mask&~bit;m;m&=m-1){ int i=me->th().warp*32+__builtin_ctz(m); e->f[i].state=RUN; push(e,i); } return; }
  me->state=WARP; next(e); }
void emu_access(const void*p,unsigned n,int k){ if(g_check<2) return; access_(p,n,k,__builtin_return_address(0),true); }
void emu_cp_async(void*s,const void*g,int n,int src){ Exec*e=tl_ex; Fiber*f=e->cur; if(g_check>1){ if(src) access_(g,src,0,__builtin_return_address(0),false); access_(s,n,3,__builtin_return_address(0),true); } Cp c{s,g,n,src,f->group}; bool lazy= g_check>1 || g_cp==1 || (g_cp==2 && (xr(e)&1)); if(lazy){ memset(s,0xFF,n); f->cps.push_back(c); } else { Cp d=c; memcpy(d.s,d.g,d.src); if(d.src<d.n) memset((char*)d.s+d.src,0,d.n-d.src);} }
void emu_cp_async_commit(){ tl_ex->cur->group++; }
void emu_cp_async_wait(int n){ cp_flush(tl_ex->cur,n); }
// ---- Hopper ----
static void mb_check(Exec*e,MBar*b){ if(b->pend==0&&b->tx==0){ b->phase^=1; b->pend=b->exp; e->spins=0; } }
void emu_mbar_init(void*p,int c){ MBar*b=(MBar*)p; if((uintptr_t)p&7){ fail("mbarrier not 8-byte aligned"); bail(tl_ex);} b->phase=0; b->exp=c; b->pend=c; b->valid=1; b->tx=0; }
void emu_mbar_arrive(void*p,int tx){ Exec*e=tl_ex; MBar*b=(MBar*)p; b->tx+=tx; if(b->pend==0){ fail("mbarrier: more arrivals than its count %d",(int)b->exp); bail(e);} b->pend--; mb_check(e,b); }
static uint32_t swz128(uint32_t a){ return a^(((a>>7)&7)<<4); }

static void tma_do(Exec*e,Tma&t){ const TensorMap*m=(const TensorMap*)t.m; uint32_t off=(uint32_t)(t.s-e->dyn); uint32_t rb=m->box[0]*m->element_bytes;
  for(uint32_t r=0;r<m->box[1];r++) for(uint32_t c=0;c<m->box[0];c++){ int64_t gx=t.x+(int64_t)c, gy=t.y+(int64_t)r; uint32_t o=off+r*rb+c*m->element_bytes; if(m->swizzle==3) o=swz128(o); unsigned char*d=e->dyn+o; if(gx<0||gy<0||gx>=(int64_t)m->dim[0]||gy>=(int64_t)m->dim[1]) memset(d,0,m->element_bytes); else memcpy(d,(void*)(m->base+gy*m->pitch[0]+t.z*m->pitch[1]+gx*m->element_bytes),m->element_bytes); }
  MBar*b=(MBar*)t.bar; b->tx-=(int)(rb*m->box[1]); mb_check(e,b); }
static bool tma_step(Exec*e){ if(e->tma.empty()) return false; size_t i= g_sched==2? xr(e)%e->tma.size():0; Tma t=e->tma[i]; e->tma.erase(e->tma.begin()+i); tma_do(e,t); return true; }
void emu_tma_load(void*s,const void*m,void*bar,int x,int y,int z){ Exec*e=tl_ex; const TensorMap*t=(const TensorMap*)m; uint32_t off=(uint32_t)((unsigned char*)s-e->dyn); if(off&127||(t->swizzle==3&&off&1023)){ fail("TMA destination offset %u not aligned",off); bail(e);} if(t->swizzle==3&&t->box[0]*t->element_bytes!=128){ fail("TMA 128B swizzle wants a 128-byte box row"); bail(e);} 
  uint32_t n=t->box[0]*t->box[1]*t->element_bytes; if(off+n>e->dyn_n){ fail("TMA writes past dynamic shared memory"); bail(e);} memset(s,0xFF,n); e->tma.push_back({(unsigned char*)s,(const unsigned char*)m,bar,x,y,z}); }   // poison now, land later: readers that do not wait see NaN
void emu_mbar_wait(void*p,int ph){ Exec*e=tl_ex; volatile MBar*b=(MBar*)p; while(b->phase==(unsigned)(ph&1)){ if(++e->spins>4000000){ fail("deadlock: thread spins on an mbarrier (phase %d, pending %d, tx %d)",(int)b->phase,(int)b->pend,(int)b->tx); bail(e);} 
    if((g_sched!=2||xr(e)%4==0||e->qh==e->qt)&&tma_step(e)) continue; if(g_sched==1){ /* LIFO would starve */ uint16_t me=(uint16_t)e->cur->linear; e->qh--; e->q[e->qh&(2*MAXT-1)]=me; next(e);} else emu_yield(); } }
static void wg_run(Exec*e,Wg&g){
  auto at=[&](uint32_t o)->float{ uint16_t v; o=swz128(o); if(o+2>e->dyn_n){ fail("wgmma reads past shared memory"); return 0;} memcpy(&v,e->dyn+o,2); return __uint_as_float((unsigned)v<<16); };
  auto dec=[&](uint64_t d,int row,int k){ uint32_t a=(uint32_t)((d&0x3FFF)<<4), sbo=(uint32_t)((d>>32&0x3FFF)<<4); return at(a+(row/8)*sbo+(row%8)*128+k*2); };
  auto decmn=[&](uint64_t d,int n,int k){ uint32_t a=(uint32_t)((d&0x3FFF)<<4), sbo=(uint32_t)((d>>32&0x3FFF)<<4), lbo=(uint32_t)((d>>16&0x3FFF)<<4); return at(a+(n/64)*lbo+(k/8)*sbo+(k%8)*128+(n%64)*2); };
  static thread_local float A[64][16],B[256][16];
  if(g.regs) for(int t=0;t<128;t++) for(int i=0;i<4;i++){ int w=t/32,l=t%32,r=w*16+l/4+(i&1)*8,k=(l%4)*2+(i>>1)*8; A[r][k]=__uint_as_float(g.a[t][i]<<16); A[r][k+1]=__uint_as_float(g.a[t][i]&0xffff0000u); }
  else for(int r=0;r<64;r++) for(int k=0;k<16;k++) A[r][k]=dec(g.da,r,k);
  for(int r=0;r<g.n;r++) for(int k=0;k<16;k++) B[r][k]=g.mn?decmn(g.db,r,k):dec(g.db,r,k);
  for(int t=0;t<128;t++){ int w=t/32,l=t%32; for(int j=0;j<g.n/8;j++) for(int i=0;i<4;i++){ int r=w*16+l/4+(i>>1)*8,c=j*8+(l%4)*2+(i&1); float s=0; for(int k=0;k<16;k++) s+=A[r][k]*B[c][k]; float&o=g.d[t][j*4+i]; o=g.acc?o+s:s; } } }
void emu_wgmma(float*d,const uint32_t*areg,uint64_t da,uint64_t db,int n,int mn,int acc){ Exec*e=tl_ex; Fiber*f=e->cur; int wg=f->linear/128,t=f->linear%128; if((!areg&&(da>>62)!=1)||(db>>62)!=1){ fail("wgmma emulation: only 128B swizzle"); bail(e);}
  for(auto&q:e->wgq[wg]) if(q.second.arrived<128&&!q.second.d[t]){ Wg&g=q.second; if(g.da!=da||g.db!=db||g.n!=n||g.acc!=(acc!=0)||g.mn!=mn){ fail("wgmma operands differ inside a warpgroup"); bail(e);} g.d[t]=d; if(areg) memcpy(g.a[t],areg,16); g.arrived++; return; }
  Wg g{}; g.da=da; g.db=db; g.n=n; g.mn=mn; g.acc=acc!=0; g.regs=areg!=nullptr; g.d[t]=d; if(areg) memcpy(g.a[t],areg,16); g.arrived=1; e->wgq[wg].push_back({-1,g}); }
struct WgArg { int kind,n; }; static void wg_noop(void**,unsigned){}
void emu_wgmma_commit(){ Exec*e=tl_ex; int wg=e->cur->linear/128; for(auto&q:e->wgq[wg]) if(q.first<0&&q.second.d[e->cur->linear%128]) { if(e->cur->linear%128==0) q.first=e->wgg[wg]; } if(e->cur->linear%128==0) e->wgg[wg]++; }
void emu_wgmma_wait(int n){ Exec*e=tl_ex; Fiber*f=e->cur; int wg=f->linear/128; // rendezvous of the 128 threads, then the last one runs what must be complete (latest legal moment)
  int ph=e->wgn[wg]/128; e->wgn[wg]++; if(e->wgn[wg]%128==0){ auto&q=e->wgq[wg]; size_t k=0; for(auto&x:q){ if(x.first>=0&&x.first<e->wgg[wg]-n){ if(x.second.arrived!=128) fail("wgmma issued by %d of 128 threads",x.second.arrived); else wg_run(e,x.second);} else q[k++]=x; } q.resize(k); e->spins=0; if(g_fail) bail(e); return; }
  while(e->wgn[wg]/128==ph){ if(++e->spins>4000000){ fail("deadlock in wgmma wait"); bail(e);} if(g_sched==1){ uint16_t me=(uint16_t)f->linear; e->qh--; e->q[e->qh&(2*MAXT-1)]=me; next(e);} else emu_yield(); } }
uint32_t emu_atomic32(void*p,int op,uint32_t v,uint32_t cmp){ if(g_check>1) access_(p,4,2,__builtin_return_address(0),true); uint32_t*q=(uint32_t*)p; switch(op){ case A_ADD: return __atomic_fetch_add(q,v,5); case A_EXCH: return __atomic_exchange_n(q,v,5); case A_OR: return __atomic_fetch_or(q,v,5); case A_AND: return __atomic_fetch_and(q,v,5); case A_XOR: return __atomic_fetch_xor(q,v,5); case A_CAS: { uint32_t c=cmp; __atomic_compare_exchange_n(q,&c,v,false,5,5); return c; } }
  uint32_t o=__atomic_load_n(q,5),n; do { switch(op){ case A_MAX: n=(int)o>(int)v?o:v; break; case A_MIN: n=(int)o<(int)v?o:v; break; case A_UMAX: n=o>v?o:v; break; case A_UMIN: n=o<v?o:v; break; default: { float a,b; memcpy(&a,&o,4); memcpy(&b,&v,4); a+=b; memcpy(&n,&a,4);} } } while(!__atomic_compare_exchange_n(q,&o,n,false,5,5)); return o; }
uint64_t emu_atomic64(void*p,int op,uint64_t v,uint64_t cmp){ if(g_check>1) access_(p,8,2,__builtin_return_address(0),true); uint64_t*q=(uint64_t*)p; if(op==A_ADD) return __atomic_fetch_add(q,v,5); if(op==A_CAS){ uint64_t c=cmp; __atomic_compare_exchange_n(q,&c,v,false,5,5); return c; } uint64_t o=__atomic_load_n(q,5),n; do { switch(op){ case A_UMAX: n=o>v?o:v; break; case A_UMIN: n=o<v?o:v; break; case A_MAX: n=(int64_t)o>(int64_t)v?o:v; break; case A_MIN: n=(int64_t)o<(int64_t)v?o:v; break; default: n=v; } } while(!__atomic_compare_exchange_n(q,&o,n,false,5,5)); return o; }
void emu_alloc_add(void*p,size_t n){ g_alloc[(uintptr_t)p]={n,nullptr}; }
void emu_alloc_del(void*p){ auto it=g_alloc.find((uintptr_t)p); if(it!=g_alloc.end()){ if(it->second.sh) munmap(it->second.sh,sizeof(Cell)*(it->second.n/2+8)); g_alloc.erase(it);} }
void emu_config(int sched,uint64_t seed,int cp,int check,int threads){ g_sched=sched; g_seed=seed; g_cp=cp; g_check=check; g_threads=threads; }
const char* emu_last_error(){ return g_err.c_str(); }
void emu_clear_error(){ g_err.clear(); g_fail=false; }
int emu_launch(EmuK_*k,unsigned gx,unsigned gy,unsigned gz,unsigned bx,unsigned by,unsigned bz,unsigned smem,void**args,int coop){
  if(bx*by*bz>MAXT||smem>DYN_MAX||!bx||!gx||!by||!gy||!bz||!gz) return 1; size_t nb=(size_t)gx*gy*gz; std::atomic<size_t> nx{0};
  int nt= coop? (int)nb : (g_threads<(int)nb? g_threads:(int)nb); static uint64_t launches=0; uint64_t lseed=++launches;
  auto work=[&](int id){ bool own=!tl_ex; if(own) tl_ex=new Exec; Exec*e=tl_ex; e->init(); e->kname=k->name; e->inv=k->inv; e->args=args; e->dyn_n=smem; e->rng=(g_seed*0x9E3779B97F4A7C15ull+lseed*7919+id)|1; for(int i=0;i<4;i++) xr(e); e->lstart=e->epoch+1;
    if(!e->tls){ void*p; e->tls_n=tls_range(&p); e->tls=(unsigned char*)p; if(p&&!e->sh_tls) e->sh_tls=(Cell*)mmap(0,sizeof(Cell)*(e->tls_n/2+8),PROT_READ|PROT_WRITE,MAP_PRIVATE|MAP_ANONYMOUS|MAP_NORESERVE,-1,0); }
    if(coop){ size_t i=id; run_block(e,k,{gx,gy,gz},{bx,by,bz},i%gx,i/gx%gy,i/gx/gy); }
    else for(;;){ size_t i=nx++; if(i>=nb||g_fail) break; if(g_sched==1||g_sched==2&&(g_seed&1)) i=nb-1-i; run_block(e,k,{gx,gy,gz},{bx,by,bz},i%gx,i/gx%gy,i/gx/gy); } };
  if(nt<=1) work(0); else { std::vector<std::thread> v; for(int i=1;i<nt;i++) v.emplace_back(work,i); work(0); for(auto&t:v) t.join(); }
  return g_fail?2:0; }
// own runtime behind gcc's -fsanitize=thread instrumentation (libtsan is NOT linked)
#define RW(n) void __tsan_read##n(void*p){access_(p,n,0,__builtin_return_address(0),true);} void __tsan_write##n(void*p){access_(p,n,1,__builtin_return_address(0),true);} \
 void __tsan_unaligned_read##n(void*p){access_(p,n,0,__builtin_return_address(0),false);} void __tsan_unaligned_write##n(void*p){access_(p,n,1,__builtin_return_address(0),false);} \
 void __tsan_volatile_read##n(void*p){access_(p,n,0,__builtin_return_address(0),true);} void __tsan_volatile_write##n(void*p){access_(p,n,1,__builtin_return_address(0),true);}
RW(1) RW(2) RW(4) RW(8) RW(16)
void __tsan_read_range(void*p,size_t n){access_(p,n,0,__builtin_return_address(0),false);} void __tsan_write_range(void*p,size_t n){access_(p,n,1,__builtin_return_address(0),false);}
void __tsan_init(){} void __tsan_func_entry(void*){} void __tsan_func_exit(){} void __tsan_vptr_update(void*,void*){} void __tsan_vptr_read(void*){}
}
